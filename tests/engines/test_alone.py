"""Work in one process on the cluster: what it yields, tells and raises."""

import os
from collections.abc import Callable, Iterator

import pytest

from unlearn_ray.config import ClusterConfig
from unlearn_ray.engines.alone import alone
from unlearn_ray.errors import ClusterError, EngineError, InputError

OnProgress = Callable[[str, int, int], None]


def counts(on_progress: OnProgress) -> Iterator[tuple[int, int]]:
    for i in range(3):
        on_progress("halves", i + 1, 3)
        yield i, os.getpid()


def test_its_items_and_its_progress_come_in_their_order_from_one_other_process(ray_session: ClusterConfig) -> None:
    told: list[tuple[str, int, int]] = []
    items = list(alone(counts, ray_session, "attack relearn", lambda *progress: told.append(progress)))
    assert [i for i, _ in items] == [0, 1, 2]
    assert len({process for _, process in items} - {os.getpid()}) == 1
    assert told == [("attack relearn, halves", i, 3) for i in (1, 2, 3)]


def breaks(error: Exception) -> Callable[[OnProgress], Iterator[int]]:
    def work(on_progress: OnProgress) -> Iterator[int]:
        yield 1
        raise error

    return work


def test_what_it_raises_is_raised_here(ray_session: ClusterConfig) -> None:
    with pytest.raises(InputError, match="two facts"):
        list(alone(breaks(InputError("two facts")), ray_session, "attack", lambda *_: None))
    with pytest.raises(EngineError, match="work in one process failed: KeyError"):
        list(alone(breaks(KeyError("lost")), ray_session, "attack", lambda *_: None))


def dies(on_progress: OnProgress) -> Iterator[int]:
    yield 1
    os._exit(1)


def test_a_lost_process_is_an_engine_error(ray_session: ClusterConfig) -> None:
    with pytest.raises(EngineError):
        list(alone(dies, ray_session, "attack", lambda *_: None))


def test_more_than_the_cluster_has_is_said_at_once(ray_session: ClusterConfig) -> None:
    workers = ray_session.workers.model_copy(update={"num_cpus": 64.0})
    with pytest.raises(ClusterError, match=r"cluster\.workers\.num_cpus"):
        next(alone(counts, ray_session.model_copy(update={"workers": workers}), "attack", lambda *_: None))
