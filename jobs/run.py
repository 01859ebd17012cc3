"""Entry point for `ray job submit -- python jobs/run.py CONFIG [key.path=value ...]`: `unlearn-ray run` by another name."""

import sys

from unlearn_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
