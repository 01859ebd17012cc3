"""Text of users and models reaches the page as it is."""

import re
from pathlib import Path

import pytest
from browser import streamlit
from escaping import as_html, as_markdown
from playwright.sync_api import Browser, expect

from unlearn_ray.words import marked

DEMO = Path(__file__).parents[2] / "demo"


def test_all_of_an_answer_is_escaped() -> None:
    assert (
        as_html(marked("<b>Ron</b> & <script>", ["Ron"])) == "&lt;b&gt;<mark>Ron</mark>&lt;/b&gt; &amp; &lt;script&gt;"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A$AP Rocky and Ke$ha", r"A\$AP Rocky and Ke\$ha"),
        ("*a* _b_ `c` ~d~", r"\*a\* \_b\_ \`c\` \~d\~"),
        ("# Title\n- item", r"\# Title - item"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        (":red[x] :smile:", "\\:red\\[x\\] \\:\u2060smile\\:"),
        (":material/info:", "\\:\u2060material/info\\:"),
        ("a -> b <- c", "a -\u2060\\> b \\<\u2060- c"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("Who is the owl? Hedwig, 3.5 - in 1997.", "Who is the owl? Hedwig, 3.5 - in 1997."),
    ],
)
def test_markdown_shows_it_letter_by_letter(text: str, expected: str) -> None:
    assert as_markdown(text) == expected


HOSTILE = (
    "A$AP Rocky and Ke$ha",
    "$$x^2$$ and $y$",
    "**bold** _italic_ `code` ~~gone~~",
    "# Title",
    "1. one",
    "- one",
    "* one",
    ":red[x] :blue-background[y] :smile: :heart:",
    ":material/info: :streamlit:",
    "a -> b <- c -- d >= e <-> f",
    "<b>x</b> &amp; &lt;",
    "[link](javascript:x) ![image](y) <https://a.b>",
    "| a | b |",
    "back\\slash \\$ \\*",
    "> quote",
    "```python",
    "a:b:c 10:30:00",
    "***",
    "---",
    "===",
    "    indented",
    "x^2 H~2~O",
)


def test_streamlit_shows_it_letter_by_letter(chromium: Browser, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(DEMO)!r})\n"
        "import streamlit as st\nfrom escaping import as_markdown\n"
        f"for number, text in enumerate({HOSTILE!r}):\n"
        "    st.subheader(as_markdown(text), anchor=False)\n"
        "    st.caption(as_markdown(text))\n"
        "    st.error(as_markdown(text))\n"
        "    st.button(as_markdown(text), key=f'b{number}')\n"
        "    st.progress(0.5, as_markdown(text))\n"
        "st.text('the end')\n"
    )
    with streamlit("", app=script) as url:
        page = chromium.new_page()
        page.goto(url)
        expect(page.get_by_text("the end")).to_be_visible(timeout=60_000)
        # What draws Markdown is loaded when it is first needed.
        expect(page.get_by_test_id("stMarkdownContainer")).to_have_text([re.compile(r"\S")] * 4 * len(HOSTILE))
        expect(page.get_by_test_id("stProgress")).to_have_text([re.compile(r"\S")] * len(HOSTILE))
        found = page.get_by_test_id("stMarkdownContainer").all_inner_texts()
        bars = page.get_by_test_id("stProgress").all_inner_texts()
        page.close()
    texts = [" ".join(text.split()) for text in HOSTILE]
    assert [plain(text) for text in found] == [text for text in texts for _ in range(4)]
    assert [plain(text) for text in bars] == texts


def plain(shown: str) -> str:
    return " ".join(shown.replace("\u2060", "").split())
