"""Escapes text of users and models, so that neither Streamlit nor a browser interprets it. One function per target."""

import html
import re
from collections.abc import Iterable

_UNSEEN = "\u2060"  # word joiner: has no width, and is in none of the patterns that are replaced below
# Patterns that Streamlit replaces after parsing Markdown, so that no backslash protects them: `:smile:`, `:material/info:`, ` -> `.
_SHORTCODE = re.compile(r":(?=[\w+-][^\s:]*:)")
_ARROW = re.compile(r"(?<!\S)(<|-|>|~)(?=(?:->|>|-|=)(?!\S))")
_MARKUP = re.compile(r"([\\`*_~#$\[\]<>&|:+={}^])")
_LIST = re.compile(r"^(\d*)([-.)])")


def as_html(pieces: Iterable[tuple[str, bool]]) -> str:
    """The pieces as HTML with the terms in <mark>. Model output is untrusted: all of it is escaped."""
    return "".join(f"<mark>{html.escape(text)}</mark>" if is_term else html.escape(text) for text, is_term in pieces)


def as_markdown(text: str) -> str:
    """Markdown that shows the text literally, on one line, without formulas, colours, icons, links or headings."""
    text = _SHORTCODE.sub(f":{_UNSEEN}", " ".join(text.split()))
    text = _MARKUP.sub(r"\\\1", _ARROW.sub(rf"\1{_UNSEEN}", text))
    return _LIST.sub(r"\1\\\2", text)
