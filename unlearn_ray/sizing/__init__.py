"""Memory, time, disk space and cost of a run before it runs, from the model's shape alone."""
