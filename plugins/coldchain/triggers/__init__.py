"""Triggers: one public class per module."""
