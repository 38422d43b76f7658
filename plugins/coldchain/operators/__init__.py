"""Operators: one public class per module."""
