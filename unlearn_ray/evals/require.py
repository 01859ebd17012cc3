"""What a gate asks of a report: `forget.choice<=0.35`. A figure that was not measured meets nothing.

GROUP.METRIC        of the unlearned model on forget, near or far; `recall` is the report's own recall
GROUP.METRIC.kept   the same as a share of the base model's, over the same probes; near and far
utility             of the unlearned model
ATTACK.METRIC       what the attack got out of the unlearned model, in every setting and at every step; ATTACK.METRIC@10 at step 10 alone.
                    Of prompts, `recall` is over short answers and `rouge_l_recall` over those that are sentences
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from unlearn_ray.errors import ConfigError
from unlearn_ray.evals.attacked import ATTACKS, AttackFigure
from unlearn_ray.evals.report import Metric, Report, shown
from unlearn_ray.evals.table import MEASURES
from unlearn_ray.reading import shown as quoted
from unlearn_ray.rows import GROUPS, Group

_OPERATORS = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    ">": lambda value, bound: value > bound,
}
_FORM = re.compile(r"(?P<name>[\w.]+)(?:@(?P<at>\d+(?:\.\d+)?))?\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<percent>%?)")  # fmt: skip
OF_GROUPS = ("recall", *MEASURES)
KEPT = ("recall", *(measure.name for measure in MEASURES.values() if measure.is_kept))
OF_ATTACKS = ("recall", "rouge_l_recall", "choice", "accuracy", "rank")
KNOWN = (
    *(f"{group}.{metric}" for group in GROUPS for metric in OF_GROUPS),
    *(f"{group}.{metric}.kept" for group in GROUPS[1:] for metric in KEPT),
    "utility",
    *(f"{attack}.{metric}" for attack in ATTACKS for metric in OF_ATTACKS),
)
_IN_WORDS = (
    f"{', '.join(GROUPS)} with .{', .'.join(OF_GROUPS)}; {', '.join(GROUPS[1:])} with .{'.kept, .'.join(KEPT)}.kept; "
    f"utility; {', '.join(ATTACKS)} with .{', .'.join(OF_ATTACKS)}, and @STEP behind"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound on one figure."""

    text: str  # as the user wrote it
    name: str
    sign: str
    bound: float
    at: float | None = None  # of an attack

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.name.split("."))

    def holds(self, value: float) -> bool:
        return bool(_OPERATORS[self.sign](value, self.bound))


@dataclass(frozen=True, slots=True)
class Checked:
    """A requirement beside the figure that it is about."""

    requirement: Requirement
    holds: bool
    said: str  # "forget.choice is 65 % [50, 78], n = 37"

    @property
    def line(self) -> str:
        return self.said if self.holds else f"{self.said}: {self.requirement.text} does not hold"


def parse(texts: Sequence[str]) -> list[Requirement]:
    """
    Raises:
        ConfigError: one can't be read, or asks for a figure that there is not.
    """
    return [_parse(text) for text in texts]


def _parse(text: str) -> Requirement:
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f'--require {quoted(text)} can\'t be read: write it as "forget.choice<=0.35"')
    name, at = found["name"], found["at"]
    if name not in KNOWN or (at and name.partition(".")[0] not in ATTACKS):
        alike = difflib.get_close_matches(name, KNOWN, 1)
        hint = f"did you mean {alike[0]}? " if alike and alike[0] != name else ""
        full = name if at is None else f"{name}@{at}"
        raise ConfigError(f"--require {quoted(text)}: {full} is not a figure; {hint}Known are {_IN_WORDS}")
    bound = float(found["bound"]) / (100 if found["percent"] else 1)
    return Requirement(text.strip(), name, found["sign"], bound, float(at) if at else None)


def check(requirements: Sequence[Requirement], report: Report, attacks: Sequence[AttackFigure]) -> list[Checked]:
    """Each requirement with its figure."""
    return [_check(each, report, attacks) for each in requirements]


def _check(required: Requirement, report: Report, attacks: Sequence[AttackFigure]) -> Checked:
    name, *rest = required.parts
    if name in ATTACKS:
        return _check_attack(required, [each for each in attacks if (each.attack, each.metric) == (name, rest[0])])
    if name == "utility":
        value = report.utility.get("unlearned")
        if value is None:
            return _unmeasured(required)
        return Checked(required, required.holds(value), f"utility is {value:.3f}")
    metric, own = _metric(report, name, rest)
    if metric is None or metric.num == 0:
        return _unmeasured(required)
    said = f"{required.name} is {shown(own, metric)}, n = {metric.num}"
    if metric.doubts:
        said += f" (not to be relied on: {', '.join(metric.doubts).replace('_', ' ')})"
    return Checked(required, required.holds(metric.agg_value), said)


def _metric(report: Report, group: str, rest: Sequence[str]) -> tuple[Metric | None, str]:
    own = report.recall if rest[0] == "recall" else rest[0]
    (of,) = (each for each in get_args(Group) if each == group)
    if rest[1:] == ["kept"]:
        return report.retention.get("unlearned", {}).get(of, {}).get(own), own
    return report.metric("unlearned", of, own), own


def _check_attack(required: Requirement, figures: Sequence[AttackFigure]) -> Checked:
    found = [each for each in figures if each.model == "unlearned" and required.at in (None, each.at)]
    if not found:
        return _unmeasured(required)
    # All settings must meet it: the one that is furthest from it speaks for them.
    is_upper = required.sign.startswith("<")
    last = max(found, key=lambda each: each.value if is_upper else -each.value)
    rank = last.metric == "rank"
    low, high = last.interval
    figure = f"{last.value:.1f} [{low:.1f}, {high:.1f}]" if rank else _share(last)
    where = f"{last.setting}, at {last.at:g}" if last.at else last.setting
    said = f"{required.name} is {figure}, n = {last.num}, in {where}"
    return Checked(required, required.holds(last.value), said)


def _share(figure: AttackFigure) -> str:
    metric = Metric(agg_value=figure.value, num=figure.num, interval=figure.interval)
    return shown("recall", metric)


def _unmeasured(required: Requirement) -> Checked:
    name = required.name if required.at is None else f"{required.name}@{required.at:g}"
    return Checked(required, False, f"{name} was not measured")


def failures(checked: Sequence[Checked]) -> Iterator[str]:
    return (each.line for each in checked if not each.holds)
