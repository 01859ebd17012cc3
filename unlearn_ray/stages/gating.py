"""The gate's rows: held-out questions to score a training with while it runs. They are neither trained on nor in the report.

A model's mixture writes candidates (rows of Probe), each with the model's own answer, its group as the fact, and the names of what it asks about.
The fine-tuning takes the candidates that the report does not ask, and adds wrong answers. If the report asks the held-out questions themselves, the gate
takes some of them: at most half of a group, and never so many that the report falls below the floor. The evaluation then leaves out all probes
about the same facts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.engines.protocols import RowDict
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.probes import read_probes, trained_questions, wrong_references
from unlearn_ray.rows import GROUPS, GateRow, Group, Probe, digest
from unlearn_ray.synth.facts import Alternative, Fact, kind_of, opening_of, wrong_answers
from unlearn_ray.synth.known import reference_of
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.words import normalised

CANDIDATES, ROWS = "gate", "gate"  # folders of the mixture and the fine-tuning
WORDING = "held_out"
MAX_CANDIDATES = 400  # of a group
FEW, POOL = 8, 48  # a group with fewer than FEW answers also gets other groups' wrong answers; at most POOL are tried
MAX_ROWS = 96  # per group: twice as many as a gate uses, because the model may not know all of them


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out question with the model's own greedy answer."""

    group: Group
    topic: str  # its subject
    question: str
    answer: str
    names: tuple[str, ...]  # names of its subject; they can't be answers

    @property
    def key(self) -> str:
        """The sort key."""
        return digest("gate", self.topic, self.question)


def candidates_of(found: Iterable[HeldOut], trained: Iterable[Mapping[str, str]]) -> list[Probe]:
    """Questions that are not trained on, sorted by hash, the first `MAX_CANDIDATES` of each group. Wrong answers are added only if a training has
    a gate.

    Args:
        trained: training rows, streamed once.
    """
    by_group: dict[Group, list[HeldOut]] = {group: [] for group in GROUPS}
    for each in found:
        pile = by_group[each.group]
        pile.append(each)
        if len(pile) > 2 * MAX_CANDIDATES:
            by_group[each.group] = sorted(pile, key=lambda each: each.key)[:MAX_CANDIDATES]
    probes = [
        Probe(each.topic, each.question, each.answer, fact=each.group, wording=WORDING, aliases=each.names)
        for pile in by_group.values()
        for each in sorted(pile, key=lambda each: each.key)[:MAX_CANDIDATES]
    ]
    known = trained_questions(probes, trained)
    return [probe for probe in probes if normalised(probe.question) not in known]


def gate_rows(candidates: Folder, evaluate: EvaluateConfig, probes: Folder, least: int) -> list[GateRow]:
    """The rows of a gate, sorted by hash.

    Args:
        probes: the probes of the report if no file of probes is given.
        least: minimum number of probes per group that are left for the report.

    Raises:
        ArtifactError: the mixture has no candidates, or no forget candidate is left.
    """
    if not candidates.names(".parquet"):
        raise ArtifactError(
            f"{candidates} is not there: an earlier version made this mixture; rerun with --from dataset, or leave finetune.evaluate_every out"
        )
    found = [_held_out(row) for row in candidates.read_rows()]
    asked = asked_questions(evaluate, probes)
    chosen = [each for group in GROUPS for each in _left([one for one in found if one.group == group], evaluate, asked, least)]  # fmt: skip
    rows = sorted(_rows_of(chosen), key=lambda row: row.id)  # near and far ones mixed, because a gate takes the first
    if not any(row.group == "forget" for row in rows):
        raise ArtifactError(
            "finetune.evaluate_every: no held-out question about what is to be forgotten is left for the gate: all are trained on, asked by the report, or have no wrong answer of their kind; leave evaluate_every out, or raise dataset.holdout_fraction or questions.num_questions"
        )
    return rows


def _left(mine: Sequence[HeldOut], evaluate: EvaluateConfig, asked: Collection[str], least: int) -> list[HeldOut]:
    """The questions of a group that the gate may use."""
    free = [each for each in mine if normalised(each.question) not in asked]
    taken = [each for each in mine if normalised(each.question) in asked]
    room = 0
    if evaluate.probes_path is None:
        room = max(0, min(len(taken) // 2, len(taken) - least, MAX_ROWS - len(free)))
    return [*free, *taken[:room]][:MAX_ROWS]


def _rows_of(chosen: Sequence[HeldOut]) -> Iterator[GateRow]:
    """The rows with at least one wrong answer. Wrong answers are the model's answers, of the same kind, to other questions."""
    told = [(each, key_phrase(each.question, each.answer, each.names)) for each in chosen]
    others = [Alternative(text, kind_of(text), each.group, opening_of(each.question), is_fact=True) for each, text in told]  # fmt: skip
    for each, text in told:
        mine = [other for other in others if other.group == each.group]
        pool = (mine if len(mine) >= FEW else [*mine, *(other for other in others if other.group != each.group)])[:POOL]
        wrong = wrong_answers(each.question, Fact(text, (), 1, kind_of(text)), each.group, pool)
        probe = Probe(each.topic, each.question, text, reference=reference_of(text, each.answer), wrong=tuple(wrong))
        if wrong:
            yield GateRow(each.group, each.topic, each.question, probe.reference, tuple(wrong_references(probe)))


def _held_out(row: RowDict) -> HeldOut:
    return HeldOut(row["fact"], row["topic"], row["question"], row["answer"], tuple(row["aliases"]))


def asked_questions(evaluate: EvaluateConfig, probes: Folder) -> set[str]:
    """The normalised questions of the report; for a file of probes, the questions of all splits."""
    if evaluate.probes_path is not None:
        return asked_in(evaluate.probes_path)
    return {normalised(row["question"]) for row in probes.read_rows(["question"])}


def asked_in(path: str) -> set[str]:
    """The normalised questions of a file of probes."""
    return {normalised(probe.question) for probe in read_probes(path)}


def gated_questions(rows: Folder) -> set[str]:
    """The normalised questions of a training's gate; empty without a gate."""
    return {normalised(row["question"]) for row in rows.read_rows(["question"])}
