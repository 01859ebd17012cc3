"""Text of users and models on its way to the page: as it is, whatever Streamlit or a browser would read into it. A function a target."""

import html
import re
from collections.abc import Iterable

_UNSEEN = "\u2060"  # word joiner: of no width, and no part of what is replaced below
# What Streamlit replaces in a text that is parsed already, where no backslash protects it: `:smile:`, `:material/info:`, ` -> `.
_SHORTCODE = re.compile(r":(?=[\w+-][^\s:]*:)")
_ARROW = re.compile(r"(?<!\S)(<|-|>|~)(?=(?:->|>|-|=)(?!\S))")
_MARKUP = re.compile(r"([\\`*_~#$\[\]<>&|:+={}^])")
_LIST = re.compile(r"^(\d*)([-.)])")


def as_html(pieces: Iterable[tuple[str, bool]]) -> str:
    """The pieces as HTML with the terms in <mark>. Model output is untrusted: all of it is escaped."""
    return "".join(f"<mark>{html.escape(text)}</mark>" if is_term else html.escape(text) for text, is_term in pieces)


def as_markdown(text: str) -> str:
    """The text as Markdown that shows it letter by letter, on one line: no formula, colour, icon, link or heading comes of it."""
    text = _SHORTCODE.sub(f":{_UNSEEN}", " ".join(text.split()))
    text = _MARKUP.sub(r"\\\1", _ARROW.sub(rf"\1{_UNSEEN}", text))
    return _LIST.sub(r"\1\\\2", text)
