"""Where the figures of a training go beside metrics.jsonl. One file a logger, one line of `table.py`."""
