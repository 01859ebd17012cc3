"""Which of a topic's terms and entities its questions and answers touch, and which none does."""

from collections.abc import Iterable, Sequence

from unlearn_ray.synth.names import mentions_entity


def untouched(entities: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The entities that none of the texts names, in their order."""
    left = list(entities)
    for text in texts:
        if not left:
            break
        left = [entity for entity in left if not mentions_entity(text, (entity,))]
    return left
