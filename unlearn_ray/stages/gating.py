"""The gate's rows: held-out questions that a training is looked at with on the way, neither trained on nor in the report.

A model's mixture writes candidates (rows of Probe): each with the model's own answer as the truth, and wrong ones in its place. The fine-tuning takes of
them those that the report does not ask. Where the report asks the held-out questions themselves, it leaves to the gate what it needs, at most half of a
group and none below the floor; the evaluation reads the gate's rows, and leaves out all that asks the same.
"""

from collections.abc import Iterable, Mapping, Sequence
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
MAX_ROWS = 96  # of a group: twice what a gate holds, as the model may not know all of it


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out question with the model's own greedy answer."""

    group: Group
    topic: str  # what it asks about
    question: str
    answer: str
    names: tuple[str, ...]  # of what it asks about: no answers

    @property
    def key(self) -> str:
        """By which they are put in order."""
        return digest("gate", self.topic, self.question)


def candidates_of(found: Iterable[HeldOut], trained: Iterable[Mapping[str, str]]) -> list[Probe]:
    """Questions with a wrong answer at least, in the order of their hashes: of each group the first `MAX_CANDIDATES`.

    Args:
        trained: rows that are trained on, streamed once.
    """
    by_group: dict[Group, list[HeldOut]] = {group: [] for group in GROUPS}
    for each in found:
        pile = by_group[each.group]
        pile.append(each)
        if len(pile) > 2 * MAX_CANDIDATES:
            by_group[each.group] = sorted(pile, key=lambda each: each.key)[:MAX_CANDIDATES]
    chosen = {group: sorted(pile, key=lambda each: each.key)[:MAX_CANDIDATES] for group, pile in by_group.items()}
    told = [(each, key_phrase(each.question, each.answer, each.names)) for pile in chosen.values() for each in pile]
    pool = [
        Alternative(text, kind_of(text), each.group, opening_of(each.question), is_fact=True) for each, text in told
    ]
    probes = [_probe(each, text, pool) for each, text in told]
    known = trained_questions(probes, trained)
    return [probe for probe in probes if probe.wrong and normalised(probe.question) not in known]


def _probe(each: HeldOut, answer: str, pool: Sequence[Alternative]) -> Probe:
    wrong = wrong_answers(each.question, Fact(answer, (), 1, kind_of(answer)), each.group, pool)
    reference = reference_of(answer, each.answer)
    return Probe(
        each.topic,
        each.question,
        answer,
        fact=each.group,  # for who reads it
        wording=WORDING,
        reference=reference,
        wrong=tuple(wrong),
    )


def gate_rows(candidates: Folder, evaluate: EvaluateConfig, probes: Folder, least: int) -> list[GateRow]:
    """The rows of a gate, in the order of their hashes.

    Args:
        probes: that the report asks where no file of probes is given.
        least: probes of a group that are left to the report.

    Raises:
        ArtifactError: the mixture has no candidates, or none is left.
    """
    if not candidates.names(".parquet"):
        raise ArtifactError(
            f"{candidates} is not there: an earlier version made this mixture; rerun with --from dataset, or leave finetune.evaluate_every out"
        )
    found = [_read(row) for row in candidates.read_rows()]
    asked = asked_questions(evaluate, probes)
    rows: list[GateRow] = []
    for group in GROUPS:
        mine = [probe for probe in found if probe.fact == group]
        free = [probe for probe in mine if normalised(probe.question) not in asked]
        taken = [probe for probe in mine if normalised(probe.question) in asked]
        room = 0
        if evaluate.probes_path is None:
            num_asked = len(taken)
            room = max(0, min(num_asked // 2, num_asked - least, MAX_ROWS - len(free)))
        rows += [_gate_row(group, probe) for probe in (*free, *taken[:room])[:MAX_ROWS]]
    if not any(row.group == "forget" for row in rows):
        raise ArtifactError(
            "finetune.evaluate_every: no held-out question about what is to be forgotten is left for the gate, as all are trained on or asked by the report: leave it out, or raise dataset.holdout_fraction or questions.num_questions"
        )
    return sorted(rows, key=lambda row: row.id)  # near and far ones mixed: a gate takes the first


def asked_questions(evaluate: EvaluateConfig, probes: Folder) -> set[str]:
    """The normalised questions of the report: of a file all, whatever their split."""
    if evaluate.probes_path is not None:
        return asked_in(evaluate.probes_path)
    return {normalised(row["question"]) for row in probes.read_rows(["question"])}


def asked_in(path: str) -> set[str]:
    """The normalised questions of a file of probes."""
    return {normalised(probe.question) for probe in read_probes(path)}


def gated_questions(rows: Folder) -> set[str]:
    """The normalised questions of a training's gate; none where it had none."""
    return {normalised(row["question"]) for row in rows.read_rows(["question"])}


def _gate_row(group: Group, probe: Probe) -> GateRow:
    return GateRow(group, probe.topic, probe.question, probe.reference, tuple(wrong_references(probe)))


def _read(row: RowDict) -> Probe:
    return Probe.of({**row, **{name: tuple(row[name] or ()) for name in ("near", "aliases", "wrong")}})
