"""Keys of the stages' sections that stand in a topic count for that topic's rows, whoever trains on them."""

from pathlib import Path

import pytest
from scripted_run import FLOORS, Engines, config_of, with_own

from unlearn_ray import pipeline
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import ThinDataError
from unlearn_ray.plan import claimed
from unlearn_ray.stages.table import COMMANDS
from unlearn_ray.synth.split import split_of


def finish(config: RunConfig) -> None:
    with claimed(config):
        pipeline.run(config, Engines(), COMMANDS[:3])


@pytest.mark.parametrize("adapters", ["joint", "per_topic"])
def test_what_a_topic_holds_out_is_held_out_near_it_and_nowhere_else(tmp_path: Path, adapters: str) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune={"adapters": adapters})
    finish(with_own(with_own(config, "Dune", dataset={"holdout_fraction": 0.8}), "Ubik", evaluate={}))
    splits = set()
    for model in ("joint",) if adapters == "joint" else ("dune", "ubik"):
        mixture, shares = config.folder / "models" / model / "mixture", {"Dune": 0.8, "Arrakeen": 0.8}
        trained = set[tuple[str, str]]()
        for row in [*(mixture / "retain").read_rows(), *(mixture / "forget").read_rows()]:
            subject, question = str(row["subject"]), str(row["question"])
            assert row["split"] == split_of(subject, question, shares.get(subject, 0.3)), row
            splits.add((row["group"], subject in shares, row["split"]))
            trained |= {(subject, question)} if row["split"] == "train" else set()
        probes = {(str(row["topic"]), str(row["question"])) for row in (mixture / "probes").read_rows()}
        assert probes and not probes & trained
    assert {("near", True, "holdout"), ("far", False, "train")} <= splits


@pytest.mark.parametrize("adapters", ["joint", "per_topic"])
def test_a_floor_of_a_topic_is_its_own(tmp_path: Path, adapters: str) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune={"adapters": adapters})
    own = with_own(config, "Ubik", dataset={"floors": {"retain_per_forget": 50.0}})
    with pytest.raises((ThinDataError, pipeline.PartialError)) as caught:
        finish(own)
    text = str(caught.value)
    assert "rows to forget 'Ubik' (floor: 50 each)" in text and "Dune" not in text
    high = config_of(
        tmp_path, "Dune", finetune={"adapters": adapters}, dataset={"floors": FLOORS | {"retain_per_forget": 50.0}}
    )
    finish(with_own(high, "Dune", dataset={"floors": {"retain_per_forget": 0.0}}))
