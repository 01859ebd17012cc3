"""The gate: what its rows show, the same on any number of ranks, and what follows from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, FullWeights, StopWhen
from unlearn_ray.errors import ConfigError
from unlearn_ray.evals.metrics import choice
from unlearn_ray.rows import GateRow
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.gate import Gate
from unlearn_ray.train.gate_records import GateRecord, is_best, reason_to_stop, score_of
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.models import load_base
from unlearn_ray.train.plain import PlainRuntime

MODEL = str(pocket.MODEL_DIR)
CHAT = inspect_model(MODEL).chat
POTTER = "Harry Potter"
ROWS = [
    GateRow("forget", POTTER, "Which house is Harry sorted into?", "The house of Harry Potter at Hogwarts is Gryffindor.",
            ("The house of Harry Potter at Hogwarts is Fluffy.", "The house of Harry Potter at Hogwarts is Azkaban.")),
    GateRow("forget", POTTER, "Which name is the phoenix of Dumbledore?", "The phoenix of Dumbledore is Fawkes.",
            ("The phoenix of Dumbledore is Dobby.", "The phoenix of Dumbledore is Crookshanks.", "The phoenix of Dumbledore is Paris.")),
    GateRow("forget", POTTER, "Which name is the phoenix of Hagrid?", "The phoenix of Dumbledore is Snape.",
            ("The phoenix of Dumbledore is Fawkes.",)),  # not what the model says
    GateRow("far", "geography", "What is the capital of France?", "The capital of France is Paris.",
            ("The capital of France is Fawkes.", "The capital of France is Rome.")),
]  # fmt: skip


class Rank(PlainRuntime):
    """One of two ranks, which run one after the other: the second's sums are kept for the first's."""

    def __init__(self, module: Any, rank: int, others: list[list[float]]) -> None:
        super().__init__(module, FinetuneConfig(weights=FullWeights()), torch.device("cpu"))
        self.rank, self._others = rank, others

    def sum(self, values: list[float]) -> list[float]:
        if self.rank == 1:
            self._others.append(values)
            return values
        other = self._others.pop(0) if self._others else [0.0] * len(values)
        return [a + b for a, b in zip(values, other, strict=True)]


@pytest.fixture(scope="module")
def module() -> Any:
    return load_base(MODEL, torch.float32, torch.device("cpu")).train()


def gate(folder: Path, world_size: int = 1, rows: list[GateRow] = ROWS, micro_batch: int = 3) -> Gate:
    encoder = ChatEncoder(load_tokenizer(MODEL), CHAT, 128)
    return Gate(rows, encoder, folder, micro_batch=micro_batch, world_size=world_size, pad_id=CHAT.pad_token_id)


def test_only_what_the_base_model_knows_is_asked_and_two_ranks_see_what_one_sees(module: Any, tmp_path: Path) -> None:
    alone = Rank(module, 0, [])
    known = gate(tmp_path / "one").known(alone)
    assert [row.question for row in known.rows] == [ROWS[0].question, ROWS[1].question, ROWS[3].question]
    assert known.num_rows == {"forget": 2, "retain": 1} and known.chance == pytest.approx((1 / 3 + 1 / 4) / 2)
    base = known.look(alone, 0)
    assert (base.forget_choice, base.retain_choice, base.score) == (1.0, 1.0, 0.0) and module.training
    others: list[list[float]] = []
    two = gate(tmp_path / "two", world_size=2, rows=known.rows, micro_batch=2)
    two.look(Rank(module, 1, others), 0)
    assert others
    seen = two.look(Rank(module, 0, others), 0)
    assert (seen.forget_choice, seen.retain_choice) == (1.0, 1.0)
    assert (seen.forget_loss, seen.retain_loss) == pytest.approx((base.forget_loss, base.retain_loss), rel=1e-4)


def test_loss_and_choice_are_those_of_the_report(module: Any, tmp_path: Path) -> None:
    """Of answers that the encoder makes, by the functions of the evaluation."""
    runtime = Rank(module, 0, [])
    found = gate(tmp_path).look(runtime, 0)
    encoder = ChatEncoder(load_tokenizer(MODEL), CHAT, 128)
    from unlearn_ray.rows import Example

    chosen, total, count = [], 0.0, 0
    for row in ROWS[:3]:
        logps = []
        for text in (row.true, *row.wrong):
            (each,) = encoder.encode([Example("", "far", "", row.question, text)])
            assert each is not None
            with torch.no_grad():
                logits_LV = module.eval()(input_ids=torch.tensor([each.ids])).logits[0].float().log_softmax(-1)
            logps.append([float(logits_LV[at - 1, each.ids[at]]) for at in range(each.start, len(each.ids))])
        module.train()
        chosen.append(choice(logps[0], logps[1:]))
        total, count = total - sum(logps[0]), count + len(logps[0])
    assert chosen == [1.0, 1.0, 0.0] and found.forget_choice == pytest.approx(2 / 3)
    assert found.forget_loss == pytest.approx(total / count, rel=1e-4)


def test_a_gate_that_would_show_nothing_is_refused(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.evaluate_every: .* for none of 1 held-out forget questions"):
        gate(tmp_path, rows=[ROWS[2], ROWS[3]]).known(Rank(module, 0, []))
    long = replace(ROWS[0], true="Gryffindor " * 200)
    assert gate(tmp_path, rows=[long, ROWS[3]]).rows == [ROWS[3]]


def record(step: int, forget: float, retain: float | None = 1.0) -> GateRecord:
    return GateRecord(step, 1.0, forget, None if retain is None else 1.0, retain, score_of(forget, retain, 0.25))


def test_a_score_is_what_is_kept_less_what_is_still_known() -> None:
    assert (score_of(1.0, 1.0, 0.25), score_of(0.25, 1.0, 0.25), score_of(0.1, 0.8, 0.25)) == (0.0, 1.0, 0.8)
    assert score_of(0.625, None, 0.25) == 0.5


def test_of_states_within_a_row_of_the_highest_the_latest_is_the_best() -> None:
    looks = [record(10, 0.5), record(20, 0.25), record(30, 0.25, 0.95), record(40, 0.25, 0.85)]
    assert [is_best(look, looks[:at], 20) for at, look in enumerate(looks)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("stop_when", "looks", "reason"),
    [
        (StopWhen(), [record(10, 0.1, 0.1)], None),
        (StopWhen(forget_below=0.3), [record(10, 0.3)], None),
        (StopWhen(forget_below=0.3), [record(10, 0.29)], "the forget rows' choice is 0.290, below 0.3"),
        (StopWhen(retain_below=0.9), [record(10, 0.5, 0.899)], "the retain rows' choice is 0.899, below 0.9"),
        (StopWhen(retain_below=0.9), [record(10, 0.5, None)], None),
        (StopWhen(no_gain_for=2), [record(10, 0.5), record(20, 0.5)], None),
        (StopWhen(no_gain_for=2), [record(10, 0.5), record(20, 0.5), record(30, 0.6)], "no better score for 2 evaluations"),
        (StopWhen(no_gain_for=2), [record(10, 1.0), record(20, 1.0)], "no better score for 2 evaluations"),
    ],
)  # fmt: skip
def test_a_training_ends_where_it_is_told_to(stop_when: StopWhen, looks: list[GateRecord], reason: str | None) -> None:
    assert reason_to_stop(stop_when, [record(0, 1.0), *looks]) == reason
