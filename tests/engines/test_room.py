"""How long trainings wait for their workers' room, and when that is over."""

import pytest

from unlearn_ray.config import WorkerResources
from unlearn_ray.engines import room
from unlearn_ray.engines.room import Room
from unlearn_ray.errors import ClusterError

HOUR = 3600.0


class Watched(Room):
    """A room on a clock of the test's, with placement groups in states of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        super().__init__(WorkerResources(num_workers=2), {"CPU": 4.0}, HOUR, self.said.append)
        self.now, self.states = 1_000_000.0, {"PENDING"}
        monkeypatch.setattr(room.time, "time", lambda: self.now)
        monkeypatch.setattr(room, "described", lambda: "no CPU is free")

    def _states(self) -> set[str]:
        return self.states

    def after(self, seconds: float, *states: str) -> None:
        self.now += seconds
        self.states = set(states)
        self.check()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7200")  # which a room sets else
    return Watched(monkeypatch)


def test_what_is_waited_for_is_said_and_ends_in_time(watched: Watched) -> None:
    watched.after(3, "PENDING")
    watched.after(HOUR - 10, "PENDING")
    assert len(watched.said) == 1 and "for each of 2 training workers: no CPU is free" in watched.said[0]
    with pytest.raises(ClusterError, match=r"cluster.start_timeout_seconds: .* for 3\d{3} s"):
        watched.after(20, "PENDING")


def test_the_time_beside_a_training_at_work_does_not_count(watched: Watched) -> None:
    watched.after(3, "CREATED", "PENDING")
    watched.after(3 * HOUR, "CREATED", "PENDING")
    assert watched.said == []
    watched.after(3, "PENDING")  # that one has ended, and its room is about to be this one's
    watched.after(HOUR - 10, "PENDING")
    with pytest.raises(ClusterError):
        watched.after(20, "PENDING")


def test_room_that_was_found_begins_the_wait_anew(watched: Watched) -> None:
    watched.after(3, "PENDING")
    watched.after(HOUR - 10, "CREATED")
    watched.after(3, "RESCHEDULING")  # a node was lost
    watched.after(HOUR - 10, "RESCHEDULING")
