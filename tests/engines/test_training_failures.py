"""Which errors of a training's workers are tried again."""

import errno
import pickle
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from unlearn_ray.engines.training_failures import NoSecondTry, borne, cause, mark
from unlearn_ray.errors import ArtifactError, ConfigError, DivergenceError, EngineError, ModelError

LOST = WorkerHealthCheckFailedError("a worker died", ActorDiedError())
BESIDE = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:53234")


def at(step: int, error: Exception) -> Exception:
    mark(error, step)
    return pickle.loads(pickle.dumps(error))  # as it comes from a worker


def ends(*attempts: dict[int, Exception]) -> Exception | None:
    """The error that ends a training whose attempts end so; None where Ray Train may try again."""
    policy: Any = NoSecondTry("joint")
    for number, errors in enumerate(attempts, start=1):
        try:
            policy.after_exception(None, errors)
        except ControllerError as error:
            assert number == len(attempts), "it ended too early"
            return pickle.loads(pickle.dumps(error)).controller_failure
    return None


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("finetune.max_tokens: 4"),
        ModelError("no"),
        ArtifactError("full"),
        DivergenceError("the training of joint diverged"),
        EngineError("the export of joint has loss 2"),
        ValueError("GenerationConfig is invalid"),
        TypeError("no"),
        AssertionError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x16 and 8x16)"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_will_come_again_is_not_tried_again(error: Exception) -> None:
    found = ends({0: at(7, error), 1: at(7, error)})
    assert isinstance(found, ConfigError | ModelError | ArtifactError | DivergenceError | EngineError)
    assert "training of joint" in str(found) or type(found) is type(error)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "errors",
    [
        {0: LOST},
        {0: at(7, BESIDE), 1: LOST},
        {0: at(7, ValueError("what a rank sees whose peer is gone")), 1: LOST},
        {0: at(7, BESIDE)},
        {0: at(7, ConnectionResetError(errno.ECONNRESET, "reset"))},
    ],
    ids=["worker", "worker and connection", "worker and more", "connection", "reset"],
)
def test_a_lost_worker_is_tried_again_as_often_as_is_borne(errors: dict[int, Exception]) -> None:
    assert ends(errors, errors, errors) is None


def test_what_may_pass_is_tried_again_but_not_twice_at_the_same_step() -> None:
    full = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert ends({0: at(7, full)}) is None
    assert ends({0: at(7, full)}, {1: at(9, full)}) is None
    found = ends({0: at(7, full)}, {1: at(7, RuntimeError("CUDA out of memory. Tried to allocate 24.00 MiB"))})
    assert isinstance(found, EngineError) and "CUDA out of memory" in str(found) and "at step 7" in str(found)


def test_the_driver_is_told_what_it_was() -> None:
    ours = DivergenceError("the training of joint diverged")
    assert cause("joint", ControllerError(ours)) is ours
    assert cause("joint", WorkerGroupError("", {0: LOST, 1: ours})) is ours
    other = cause("joint", WorkerGroupError("", {0: ValueError("one line\nand another")}))
    assert str(other) == "the training of joint failed: ValueError: one line and another"


def test_what_broke_is_told_and_not_what_the_other_ranks_saw_of_it() -> None:
    error = WorkerGroupError("two of four failed", {0: BESIDE, 1: KeyError("the real cause"), 3: BESIDE})
    assert str(cause("joint", error)) == "the training of joint failed: KeyError: 'the real cause'"
    assert "Connection closed" in str(cause("joint", WorkerGroupError("all did", {0: BESIDE})))


def test_nodes_that_are_preempted_do_not_count() -> None:
    preempted = WorkerHealthCheckFailedError("a worker died", RayActorError(preempted=True))
    told = PreemptionError(preemption_info=PreemptionInfo(None, {"node": [1]}), drain_timed_out=True)
    policy = DefaultFailurePolicy(borne(1))
    for _ in range(5):
        for error in (WorkerGroupError("lost", {0: BESIDE, 1: preempted}), told):
            assert policy.make_decision(error).value == "RETRY"
    lost = WorkerGroupError("lost", {1: LOST})
    assert [policy.make_decision(lost).value for _ in range(2)] == ["RETRY", "RAISE"]
    assert ends({0: at(7, BESIDE), 1: preempted}) is None
