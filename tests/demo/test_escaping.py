"""Text of users and models reaches the page as it is."""

import pytest
from escaping import as_html, as_markdown

from unlearn_ray.words import marked


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
