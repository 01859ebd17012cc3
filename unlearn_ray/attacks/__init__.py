"""Attacks on a finished run: what brings the forgotten back, and how much of it."""
