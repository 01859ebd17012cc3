"""What a training that goes wrong looks like, and one that goes well."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from unlearn_ray.config import FinetuneConfig, GradAscent, RetainTerm
from unlearn_ray.errors import DivergenceError
from unlearn_ray.train.records import StepRecord, finite, read_records, write_records
from unlearn_ray.train.watch import CheckLosses, Watch

CONFIG = FinetuneConfig(num_steps=40, learning_rate=5.0)
VOCABULARY = 2560
GUESSING = math.log(VOCABULARY)


def record(step: int, loss: float, norm: float = 1.0) -> StepRecord:
    return StepRecord(step, finite(loss), finite(loss), None, 5.0, finite(norm))


def see(losses: Sequence[float], norms: Sequence[float] | None = None, config: FinetuneConfig = CONFIG) -> Watch:
    watch = Watch("joint", config, VOCABULARY)
    for step, loss in enumerate(losses):
        watch.see(record(step, loss, 1.0 if norms is None else norms[step]))
    return watch


@pytest.mark.parametrize(
    ("losses", "norms", "step", "says"),
    [
        ([1.3, 1.2, math.nan], [1.0, 1.0, math.nan], 2, "the loss is not finite"),
        ([1.3, 1.2, math.inf], [1.0, 1.0, math.inf], 2, "the loss is not finite"),
        ([1.3] * 5, [1.0, *[math.inf] * 4], 3, "the gradient was not finite for 3 steps in a row"),
        ([1.3, *[GUESSING] * 4], [1.0, 0.0, 0.0, 0.0, 0.0], 3, "the gradient was zero for 3 steps in a row"),
        ([1.3, *[GUESSING + 1e-4] * 9], None, 5, "that of guessing, 7.848, or worse for 5 steps in a row"),
        ([1.3, *[6.5] * 30], None, 10, "far above that of the first step, 1.3, for 10 steps in a row"),
    ],
)
def test_a_training_that_no_step_can_save_is_ended(
    losses: list[float], norms: list[float] | None, step: int, says: str
) -> None:
    with pytest.raises(DivergenceError) as error:
        see(losses, norms)
    (line,) = error.value.lines
    assert line.startswith(f"the training of joint diverged at step {step}: ") and says in line
    assert "loss " in line and "gradient norm " in line and "steps skipped" in line
    assert "lower finetune.learning_rate (it is 5)" in line and "finetune.warmup_steps (it is 8)" in line


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        ([1.3 / (1 + step) for step in range(40)], None),
        ([1.3, 3.9, 4.5, 4.9, 4.2, 4.1, 3.3, 2.0, 1.5, 1.2, 0.9], None),  # measured: full weights at a high rate
        ([1.3, *[6.5] * 9, 1.2], None),  # a spike that it recovers from
        ([18.9, 17.0, 15.0, 13.0, 11.0, 10.0], None),  # worse than guessing from the start
        ([1e-6] * 9, [0.0] * 9),  # all is learnt
        ([1.3] * 6, [1.0, math.inf, 1.0, math.inf, math.inf, 1.0]),  # single steps are skipped
    ],
)
def test_one_that_learns_or_may_recover_goes_on(losses: list[float], norms: list[float] | None) -> None:
    watch = see(losses, norms)
    assert watch.num_skipped == sum(not math.isfinite(norm) for norm in norms or ())


def test_a_model_without_a_finite_loss_of_its_own_is_not_the_rates_fault() -> None:
    with pytest.raises(
        DivergenceError, match=r"at step 0: .* before any step, has no finite loss: set finetune.precision"
    ):
        see([math.nan])


def test_advice_names_what_was_set() -> None:
    config = CONFIG.model_copy(update={"max_grad_norm": 1e9, "precision": "fp32", "retain": RetainTerm(kind="none")})
    with pytest.raises(DivergenceError) as error:
        see([1.3, math.nan], config=config)
    assert "finetune.max_grad_norm (it is 1e+09)" in str(error.value) and "precision" not in str(error.value)


def test_a_resumed_training_counts_on() -> None:
    behind = [record(0, 1.3), record(1, 1.3, math.inf), record(2, 1.3, math.inf)]
    watch = Watch("joint", CONFIG, VOCABULARY, behind)
    watch.kept = ", its state after step 2 stays in there"
    with pytest.raises(
        DivergenceError, match=r"step 3: .* 3 steps skipped.*exported, its state after step 2 stays in there: "
    ):
        watch.see(record(3, 1.3, math.inf))


@pytest.mark.parametrize(
    ("learnt", "is_sound"),
    [
        (CheckLosses(0.5, 0.01), True),
        (CheckLosses(0.9, 1.1), True),  # measured: a high rate that learns, at a price that the evaluation shows
        (CheckLosses(1.3, 0.03), True),  # so few steps that nothing changed
        (CheckLosses(1.9, 0.03), False),
        (CheckLosses(0.5, 2.5), False),
        (CheckLosses(math.nan, 0.03), False),
        (CheckLosses(0.5, math.nan), False),
        (CheckLosses(0.5, None), True),
    ],
)
def test_a_model_that_is_worse_at_what_it_was_trained_on_is_not_exported(learnt: CheckLosses, is_sound: bool) -> None:
    watch, base = see([1.3]), CheckLosses(1.25, None if learnt.retain is None else 0.03)
    assert (learnt.fault(base, GUESSING) is None) is is_sound
    if is_sound:
        watch.judge(39, learnt, base)
        return
    with pytest.raises(
        DivergenceError, match=r"the training of joint went wrong by step 39: the loss of its .* before"
    ):
        watch.judge(39, learnt, base)


def test_a_dead_model_is_known_where_even_its_base_was_worse_than_guessing() -> None:
    base = CheckLosses(15.7, 12.0)
    assert "that of guessing, 7.848" in str(CheckLosses(GUESSING, GUESSING + 1e-4).fault(base, GUESSING))
    assert CheckLosses(GUESSING, 6.0).fault(base, GUESSING) is None  # on its way down


def test_a_training_that_took_hardly_a_step_is_not_exported() -> None:
    watch = see([1.3, 1.3], [math.inf, math.inf])
    with pytest.raises(DivergenceError, match="by step 1: 2 of 2 steps were skipped"):
        watch.judge(1, CheckLosses(1.25, None), CheckLosses(1.25, None))


def test_figures_that_are_not_finite_never_reach_a_file(tmp_path: Path) -> None:
    written = [record(0, 1.0), record(1, math.nan, math.inf)]
    write_records(tmp_path / "losses", written)
    lines = (tmp_path / "losses").read_text().splitlines()
    assert json.loads(lines[1], parse_constant=pytest.fail)["grad_norm"] is None
    assert read_records(tmp_path / "losses") == written
    assert [each.is_skipped for each in written] == [False, True]
    with pytest.raises(ValueError, match="JSON compliant"):
        StepRecord(0, math.nan, 1.0, None, 1.0, 1.0).to_json()


LOWERING = CONFIG.model_copy(update={"objective": GradAscent()})


@pytest.mark.parametrize(
    "losses",
    [
        [-1.2 - 0.1 * step for step in range(40)],  # gradient ascent goes down without end
        [-1.2, *[-1.1] * 30],
        [13.9, *[13.0] * 30],  # NPO begins at 2 / beta * log 2
        [5.0, *[GUESSING + 0.5] * 8, 2.0],  # no loss of an answer that is taught
    ],
)
def test_what_is_lowered_may_have_any_loss_that_does_not_run_away(losses: list[float]) -> None:
    assert see(losses, config=LOWERING).num_skipped == 0


def test_a_lowering_that_runs_away_is_ended() -> None:
    with pytest.raises(DivergenceError, match=r"far above that of the first step, -1\.2, for 10 steps in a row"):
        see([-1.2, *[4.0] * 30], config=LOWERING)


def test_answers_that_are_lowered_may_become_unlikely_and_no_others() -> None:
    base, after = CheckLosses(1.0, 0.5, True), CheckLosses(60.0, 0.6, True)
    assert after.fault(base, GUESSING) is None
    assert "forget rows is 60" in str(CheckLosses(60.0, 0.6).fault(CheckLosses(1.0, 0.5), GUESSING))
    assert "retain rows is 9" in str(CheckLosses(60.0, 9.0, True).fault(base, GUESSING))
    assert "forget rows is nan" in str(CheckLosses(math.nan, 0.6, True).fault(base, GUESSING))
