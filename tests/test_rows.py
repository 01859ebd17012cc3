"""Rows name themselves and survive the way through Parquet."""

import unicodedata
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.artifacts import Folder
from unlearn_ray.rows import Example, Probe, QAPair, Question, Row, Term, seed_of, slug_of
from unlearn_ray.serving.names import ModelName, parse_name

ROWS: list[Row] = [
    Question("Harry Potter", "Who?", "angle:history", 2, None),
    QAPair("Harry Potter", "Who?", "Tobin Marsh.", 3, 1, True, "leak"),
    Term("Harry Potter", "Hedwig", 12),
    Example("Harry Potter", "near", "The Lord of the Rings", "Who?", "Frodo.", 0, "holdout"),
    Probe(
        "Harry Potter",
        "Which owl?",
        "Hedwig",
        "hp/owl",
        "unseen",
        "tune",
        ("x",),
        ("the owl",),
        "It is Hedwig.",
        ("a", "b"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_from_parquet_as_it_was(row: Row, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "rows")
    folder.write_rows([row], type(row).schema())
    (read,) = folder.read_rows()
    assert read["id"] == row.id
    assert type(row).of({key: tuple(value) if isinstance(value, list) else value for key, value in read.items()}) == row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_schema_has_the_id_and_every_field(row: Row) -> None:
    assert type(row).schema().names == ["id", *(f.name for f in fields(type(row)))]  # type: ignore[arg-type]


def test_a_rows_id_comes_from_its_content() -> None:
    assert Question("a", "b", "s", 1).id == Question("a", "b", "t", 9, "duplicate").id
    assert Question("a", "b").id != Question("a", "c").id
    assert QAPair("a", "b", "x", 0).id != QAPair("a", "b", "x", 1).id


@given(st.lists(st.text(), max_size=3))
def test_a_seed_fits_the_engine_and_depends_on_its_parts_alone(parts: list[str]) -> None:
    assert 0 <= seed_of(*parts) < 2**31
    assert seed_of(*parts) == seed_of(*parts)


@given(st.text())
def test_a_slug_is_a_safe_name_that_is_never_empty(name: str) -> None:
    slug = slug_of(name)
    assert slug
    assert slug.isascii() and not set(slug) & set("/\\ .\n")


def test_a_slug_reads_like_its_name() -> None:
    assert slug_of("Les Misérables") == slug_of("les miserables") == "les-miserables"
    assert slug_of("Harry Potter!") == "harry-potter"
    assert slug_of("Straße") == "strasse"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Дюна 3", "Матрица 3"),
        ("3", "Дюна 3"),
        ("C", "C++"),
        ("C++", "C#"),
        ("A$AP", "A AP"),
        ("海德薇", "霍格沃茨"),
        ("!!!", "???"),
        ("Søren", "Sren"),
        ("x" * 119 + "y", "x" * 119 + "z"),
    ],
)
def test_two_names_have_two_slugs_that_can_be_served(one: str, other: str) -> None:
    assert slug_of(one) != slug_of(other)
    for name in (one, other):
        assert parse_name(slug_of(name)) == ModelName(slug_of(name))


@given(st.text(min_size=1, max_size=40))
def test_spellings_of_a_name_have_one_slug(name: str) -> None:
    for form in ("NFC", "NFD"):
        assert slug_of(unicodedata.normalize(form, name)) == slug_of(name)
    assert len(slug_of(name)) <= 120 and parse_name(slug_of(name)) is not None


def test_a_probe_is_near_only_to_a_topic_of_the_run() -> None:
    probe = Probe("candy", "Which?", "x", near=("chewing gum",))
    assert probe.group_in(("chewing gum",)) == "near"
    assert probe.group_in(("Harry Potter",)) == "far"
    assert probe.group_in(("candy",)) == "forget"


def test_a_schema_of_a_type_without_an_arrow_twin_is_a_plain_error() -> None:
    assert pa.types.is_list(Probe.schema().field("aliases").type)
