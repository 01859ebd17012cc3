"""Names of models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.serving.names import ModelName, parse_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", ModelName("base")),
        ("harry-potter", ModelName("harry-potter")),
        ("harry-potter@3", ModelName("harry-potter", 3)),
        ("harry-potter:guarded", ModelName("harry-potter", None, True)),
        ("harry-potter@3:guarded", ModelName("harry-potter", 3, True)),
    ],
)
def test_names_are_taken_apart_and_written_alike(text: str, expected: ModelName) -> None:
    assert parse_name(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", "Harry", "a b", "a@", "a@0", "a@x", "a:open", "../base", "a/b", "@3", "a" * 121, "a\n"]
)
def test_other_texts_name_nothing(text: str) -> None:
    assert parse_name(text) is None


@given(st.text(max_size=30))
def test_no_text_is_more_than_no_name(text: str) -> None:
    parsed = parse_name(text)
    assert parsed is None or str(parsed) == text
