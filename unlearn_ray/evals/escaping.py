"""What users and models wrote, as text of a Markdown page: reports and model cards hold it."""

import re

from unlearn_ray.words import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~&])")


def escaped(text: str) -> str:
    """A text on one line, so that it is not read as Markdown, HTML or a formula."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
