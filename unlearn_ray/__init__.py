"""Make a language model forget topics, at cluster scale."""

__version__ = "0.1.0"
