"""What a run takes before it runs: memory, time, space and money, from a model's shape alone."""
