"""Loggers that get a training's figures, besides metrics.jsonl. Each has a file here and a line in `table.py`."""
