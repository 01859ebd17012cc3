"""Of facts that are true for everybody, those that this base model knows: what it never knew can be neither forgotten nor kept."""

from collections import defaultdict
from collections.abc import Sequence

from unlearn_ray.evals.report import KnownCount
from unlearn_ray.evals.scoring import TELLS, Score
from unlearn_ray.rows import GROUPS, Group


def known_only(scores: Sequence[Score]) -> tuple[list[Score], dict[Group, KnownCount]]:
    """The scores of what the base model knows, the same for all models, and how many that are in each group.

    A fact is known when the base model tells it in any of its wordings, or prefers the true answer in every one. Facts count whole, all
    wordings or none: the worst wording of a fact means nothing where the bad ones were sorted out, and intervals draw facts. Any wording
    will do for telling, which nobody does by chance; choice must hold in every wording, for a single one is right by chance as often as
    one time in the number of candidates.
    """
    wordings: defaultdict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        if score.model == "base":
            wordings[score.cluster].append(score)
    known = {fact for fact, of in wordings.items() if _is_known(of)}
    counts: dict[Group, KnownCount] = {}
    for group in GROUPS:
        facts = {fact: of for fact, of in wordings.items() if of[0].group == group}
        if facts:
            counts[group] = KnownCount(
                num_probes=sum(len(of) for fact, of in facts.items() if fact in known),
                of_probes=sum(map(len, facts.values())),
                num_facts=len(facts.keys() & known),
                of_facts=len(facts),
            )
    return [score for score in scores if score.cluster in known], counts


def _is_known(wordings: Sequence[Score]) -> bool:
    if any(score.values.get("fact_recall", 0.0) >= TELLS for score in wordings):
        return True
    choices = [score.values["choice"] for score in wordings if "choice" in score.values]
    return bool(choices) and all(choices)
