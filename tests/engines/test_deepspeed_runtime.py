"""Two ranks under every ZeRO stage, held to one plain process on the same rows."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unlearn_ray.config import FinetuneConfig, WorkerResources
from unlearn_ray.engines.deepspeed_runtime import deepspeed_config
from unlearn_ray.engines.training_job import check_workers
from unlearn_ray.errors import ConfigError

SCRIPT = Path(__file__).with_name("sharded_losses.py")
FULL = {"weights": {"kind": "full"}, "precision": "fp32", "learning_rate": 3e-4, "max_grad_norm": 0.5}
LORA = {"weights": {"kind": "lora", "rank": 4, "alpha": 8}, "precision": "fp32", "learning_rate": 2e-3}
AUTO = {
    "config": LORA | {"precision": "auto", "num_steps": 1},
    "workers": {"num_workers": 2, "zero_stage": 2, "micro_batch": 2},
}
KL = {"retain": {"kind": "kl", "weight": 1.0}}


def workers(stage: int, micro_batch: int = 2, **more: Any) -> dict[str, Any]:
    return {"num_workers": 2, "zero_stage": stage, "micro_batch": micro_batch, **more}


PLAIN = {"full": FULL, "full kl": FULL | KL, "lora": LORA, "lora kl": LORA | KL}
CASES: dict[str, dict[str, Any]] = {name: {"config": config, "plain": True} for name, config in PLAIN.items()} | {
    "full, stage 0": {"config": FULL, "workers": workers(0)},
    "full, stage 1": {"config": FULL, "workers": workers(1)},
    "full, stage 2": {"config": FULL, "workers": workers(2)},
    "full, stage 3": {"config": FULL, "workers": workers(3)},
    "full, stage 2 offloaded": {"config": FULL, "workers": workers(2, offload="optimizer")},
    "full, one pass": {"config": FULL, "workers": workers(2, micro_batch=64)},
    "full kl, stage 2": {"config": FULL | KL, "workers": workers(2)},
    "full kl, stage 3": {"config": FULL | KL, "workers": workers(3)},
    "lora, stage 0": {"config": LORA, "workers": workers(0)},
    "lora, stage 2": {"config": LORA, "workers": workers(2)},
    "lora, stage 3": {"config": LORA, "workers": workers(3)},
    "lora, checkpointed activations": {"config": LORA, "workers": workers(2, gradient_checkpointing=True)},
    "lora kl, stage 2": {"config": LORA | KL, "workers": workers(2)},
    "lora kl, stage 3": {"config": LORA | KL, "workers": workers(3)},
    "lora, bf16": {"config": LORA | {"precision": "bf16"}, "workers": workers(2)},
    "lora, auto, all have bf16": AUTO | {"ranks_with_bf16": [0, 1]},
    "lora, auto, one has none": AUTO | {"ranks_with_bf16": [0]},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case saw, from rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    with (folder / "log").open("w") as log:
        ranks = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), json.dumps(CASES)],
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert ranks.wait(timeout=500) == 0, (folder / "log").read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)  # one that waits for the other
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


@pytest.mark.parametrize(
    "case", [name for name in CASES if name not in PLAIN and "bf16" not in name and "auto" not in name]
)
def test_sharded_training_equals_one_plain_process(found: dict[str, Any], case: str) -> None:
    plain, sharded = found[case.split(",")[0]], found[case]
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert sharded["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    assert [name for name, _ in sharded["weights"]] == [name for name, _ in plain["weights"]]
    assert [norm for _, norm in sharded["weights"]] == pytest.approx(
        [norm for _, norm in plain["weights"]], rel=1e-3, abs=1e-3
    )


def test_bf16_stays_near_fp32(found: dict[str, Any]) -> None:
    assert found["lora, bf16"]["losses"] == pytest.approx(found["lora"]["losses"], rel=0.03)


def test_ranks_compute_in_bf16_where_all_of_them_can(found: dict[str, Any]) -> None:
    assert found["lora, auto, all have bf16"]["losses"] == found["lora, bf16"]["losses"][:1]
    assert found["lora, auto, one has none"]["losses"] == found["lora, stage 2"]["losses"][:1]


def test_training_learns(found: dict[str, Any]) -> None:
    assert all(case["losses"][-1] < case["losses"][0] for name, case in found.items() if "auto" not in name)


def test_divergence_from_the_base_model_starts_at_zero_and_grows(found: dict[str, Any]) -> None:
    for name in ("full kl, stage 2", "full kl, stage 3", "lora kl, stage 2", "lora kl, stage 3"):
        assert found[name]["retain"][0] == pytest.approx(0.0, abs=1e-5)
        assert found[name]["retain"][-1] > 1e-5


def test_offload_needs_a_stage_that_knows_it() -> None:
    for stage, offload in ((0, "optimizer"), (2, "all")):
        with pytest.raises(ConfigError, match=f"cluster.workers.offload: {offload} needs zero_stage"):
            check_workers(WorkerResources.model_validate({"zero_stage": stage, "offload": offload}))
    check_workers(WorkerResources(zero_stage=3, offload="all"))


def test_settings_follow_the_config() -> None:
    settings = deepspeed_config(
        FinetuneConfig(max_grad_norm=0.3, precision="bf16"),
        WorkerResources(zero_stage=3, offload="all"),
        num_micro_batches=5,
        num_parameters=1000,
        device="cuda",
    )
    assert settings["gradient_accumulation_steps"] == 5
    assert settings["gradient_clipping"] == 0.3
    assert settings["bf16"] == {"enabled": True}
    zero = settings["zero_optimization"]
    assert (zero["stage"], zero["offload_param"]["device"], zero["offload_optimizer"]["pin_memory"]) == (3, "cpu", True)
