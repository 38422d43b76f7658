"""Sensors: one public class per module."""
