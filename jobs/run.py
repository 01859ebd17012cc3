"""Entry point for `ray job submit -- python jobs/run.py CONFIG [key.path=value ...]`: `unlearn-ray run` by another name."""

import sys

from unlearn_ray.cli import run_alone

if __name__ == "__main__":
    run_alone(sys.argv[1:], "jobs/run.py")
