"""Whichever replica the proxy asks, a scraper sees all of them."""

import sys
from pathlib import Path

from head import Head


def test_a_replica_finds_the_figures_of_all_replicas_also_on_loopback(head: Head) -> None:
    script = Path(__file__).with_name("two_replicas.py")
    shown = head.run(sys.executable, script, head.address, cwd=script.parent, timeout=600).stdout
    assert len(set(shown.split()[-2:])) == 2, shown[-500:]
