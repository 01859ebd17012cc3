"""The stages of a run: one object each, listed in table.py."""
