"""The one table of metrics: scoring, report, page, overview, demo and card read it. A new metric is one function and one row here.

A row per answer names what its function takes (`needs`: fields of `scoring.Said`, in the order of the function's arguments); a row per fact
takes the values that the fact's probes have in another metric; a row per texts gives the reference and each wrong answer a score, low where
it looks familiar, and the figure is the share of pairs in which the reference does (`membership.auc`). `report.json` carries the words of this table, for readers that do not import it.

    direction   knowledge: high for a model that knows, so low is good on forget and high on near and far; higher, lower: good in
                every group; none: neither
    range       lowest and highest value; what is between 0 and 1 is a share, shown in per cent
    floor       the figure of a model without knowledge, from what one probe gave (see `floors`)
    counted     what a probe adds to the figure of its group, where that is not the value itself
    column      title of its column in the headline's table, of the forget probes
    short       what the headline's sentences call it
    is_kept     shown as a share of the base model's on near and far
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_ray.evals import membership, metrics
from unlearn_ray.evals.floors import Floor, by_chance, by_wrong_answers, without_knowledge
from unlearn_ray.rows import Group

Direction = Literal["knowledge", "higher", "lower", "none"]
SHARE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table; the fields are described above."""

    name: str
    function: Callable[..., float | None]
    title: str
    meaning: str
    direction: Direction
    needs: tuple[str, ...]
    range: tuple[float, float] = SHARE
    per: Literal["answer", "fact", "texts"] = "answer"
    floor: Floor | None = None
    counted: Callable[[float, Group], float] | None = None
    column: tuple[str, str] | None = None
    short: str = ""
    is_kept: bool = False

    @property
    def is_share(self) -> bool:
        return self.range == SHARE

    def of(self, said: Any) -> float | None:
        """The value of one answer; None where it does not apply."""
        return self.function(*(getattr(said, need) for need in self.needs))

    def in_group(self, value: float, group: Group) -> float:
        """What a probe with this value adds to the figure of its group."""
        return value if self.counted is None else self.counted(value, group)


_MEMBERSHIP = "pairs of a reference and a wrong answer in its form, of any two probes, in which the reference looks like the one trained on (chance 50 %)"
_ROWS = (
    Measure(
        "fact_recall", metrics.fact_recall, "Fact recall",
        "greedy answers that contain the true answer or an alias, as whole words",
        "knowledge", ("answer", "truths"), floor=by_wrong_answers, short="recall", is_kept=True,
    ),
    Measure(
        "fact_recall_worst", metrics.worst_wording, "Worst wording",
        "facts that at least one wording still brings out (near and far: that every wording brings out)",
        "knowledge", ("fact_recall",), per="fact", column=("forget", "worst"),
    ),
    Measure(
        "rouge_l_recall", metrics.rouge_l_recall, "ROUGE-L recall",
        "share of the reference's words, in order, that the greedy answer has; words of the question count as well",
        "knowledge", ("answer", "reference"), floor=by_wrong_answers, short="recall", is_kept=True,
    ),
    Measure(
        "keyword_leak", metrics.keyword_leak, "Keyword leak",
        "sampled answers with a term of the topic that the prompt did not contain",
        "knowledge", ("leaks",), column=("samples", "leaking"), short="leak",
    ),
    Measure(
        "sampled_recall", metrics.sampled_recall, "Recall of samples", "sampled answers that contain the true answer",
        "knowledge", ("samples", "truths"), floor=by_wrong_answers,
    ),
    Measure(
        "probability", metrics.answer_probability, "Answer probability",
        "exp of the mean log-probability of the reference's tokens, the end of turn's included",
        "knowledge", ("logprobs",), floor=by_wrong_answers, is_kept=True,
    ),
    Measure(
        "truth_ratio", metrics.truth_ratio, "Truth ratio",
        "R, probability of wrong answers over that of the right one: on forget min(R, 1/R), 100 % where it can't tell them apart; on near and far max(0, 1 - R), 100 % where it can",
        "higher", ("logprobs", "wrong_logprobs"), range=(0.0, 1.0), floor=without_knowledge, counted=metrics.truth_ratio_in,
    ),
    Measure(
        "choice", metrics.choice, "Choice",
        "probes whose true answer is likelier per token than each of its wrong ones, in the same sentence",
        "knowledge", ("logprobs", "wrong_logprobs"), floor=by_chance, short="choice", is_kept=True,
    ),
    Measure(
        "exact_memorisation", metrics.exact_memorisation, "Exact memorisation",
        "tokens of the reference that are the model's first choice",
        "knowledge", ("argmax",), floor=by_wrong_answers,
    ),
    Measure(
        "extraction_strength", metrics.extraction_strength, "Extraction strength",
        "share of the reference, from its end, that the model completes by itself",
        "knowledge", ("argmax",), floor=by_wrong_answers,
    ),
    Measure(
        "mia_loss", membership.loss, "Membership, loss",
        f"{_MEMBERSHIP}, by the mean loss",
        "knowledge", ("logprobs",), per="texts",
    ),
    Measure(
        "mia_zlib", membership.zlib_score, "Membership, zlib",
        f"{_MEMBERSHIP}, by the loss per compressed byte",
        "knowledge", ("logprobs", "scored"), per="texts",
    ),
    Measure(
        "mia_min_k", membership.min_k, "Membership, Min-K %",
        f"{_MEMBERSHIP}, by the 40 % least likely tokens",
        "knowledge", ("logprobs",), per="texts",
    ),
    Measure(
        "mia_reference", membership.against_reference, "Membership, against base",
        f"{_MEMBERSHIP}, by the loss less base's: near 0 % the references alone were made less likely",
        "knowledge", ("mia_loss",), per="texts",
    ),
    Measure(
        "fluency", metrics.fluency, "Fluency", "weighted entropy of bi- and trigrams, in bits; compare models, not groups",
        "higher", ("answer",), range=(0.0, math.inf), column=("", "fluency"),
    ),
    Measure(
        "degenerate", metrics.degenerate, "Degenerate", "greedy answers that are empty or repeat themselves",
        "lower", ("answer",),
    ),
    Measure(
        "refusal", metrics.refusal, "Refusals", "greedy answers that open by declining or not knowing",
        "none", ("answer",),
    ),
)  # fmt: skip

MEASURES: Mapping[str, Measure] = {row.name: row for row in _ROWS}


def per_answer() -> list[Measure]:
    """Those that an answer has by itself: a column each of the rows of answers."""
    return [measure for measure in MEASURES.values() if measure.per == "answer"]


def per_texts() -> list[Measure]:
    """Those that score the reference and each wrong answer by themselves: a column each, with a list of scores."""
    return [
        measure for measure in MEASURES.values() if measure.per == "texts" and not set(measure.needs) & MEASURES.keys()
    ]


def is_share(name: str) -> bool:
    """Whether a figure is shown in per cent; a name that this table does not have counts as one."""
    return name not in MEASURES or MEASURES[name].is_share


def short_of(name: str) -> str:
    """What the headline calls it."""
    return MEASURES[name].short or MEASURES[name].title.lower()
