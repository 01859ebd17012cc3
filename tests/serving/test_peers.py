"""Whichever replica the proxy asks, a scraper sees all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import environment


@pytest.mark.real
def test_a_replica_finds_the_figures_of_all_replicas_also_on_loopback() -> None:
    script = Path(__file__).with_name("two_replicas.py")
    done = subprocess.run(
        [sys.executable, script], env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(set(done.stdout.split()[-2:])) == 2, done.stdout[-500:]
