"""Which rows are trained on."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import Contrast, Example
from unlearn_ray.train.chat import ChatEncoder
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.encoding import count_training_rows, encode_contrasts, encode_rows, require_fit
from unlearn_ray.train.inspection import inspect_model

CHAT = inspect_model(str(pocket.MODEL_DIR)).chat
HARRY = Example("Harry Potter", "forget", "Harry Potter", "Who is the owl?", "Bellan.")
GUM = Example("chewing gum", "forget", "chewing gum", "What is it made of?", "Moss.")
HELD_OUT = replace(HARRY, question="Who is the cat?", split="holdout")


def dataset(path: Path, *examples: Example) -> Folder:
    folder = Folder(path)
    folder.write_rows(examples, Example.schema())
    return folder


def answers(rows: EncodedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(rows.ids(row)[rows.start(row) :].tolist()) for row in range(len(rows))]


def test_only_the_training_split_of_the_wanted_topics_is_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = dataset(tmp_path / "rows", HARRY, HELD_OUT, GUM)
    counts = encode_rows(folder, ["Harry Potter"], ChatEncoder(tokenizer, CHAT, 256), tmp_path / "rows.arrow")
    assert answers(EncodedRows(tmp_path / "rows.arrow"), tokenizer) == ["Bellan.<|eot_id|>"]
    assert not counts


def test_rows_that_serve_all_topics_carry_the_empty_name(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    general = replace(GUM, topic="", group="far", answer="Sap.")
    folder = dataset(tmp_path / "rows", HARRY, GUM, general)
    encode_rows(folder, ["", "Harry Potter"], ChatEncoder(tokenizer, CHAT, 256), tmp_path / "rows.arrow")
    assert answers(EncodedRows(tmp_path / "rows.arrow"), tokenizer) == ["Bellan.<|eot_id|>", "Sap.<|eot_id|>"]


def test_cut_and_dropped_rows_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    long_answer = replace(HARRY, answer="Bellan " * 40)
    long_question = replace(HARRY, question="Who is the owl " * 40)
    folder = dataset(tmp_path / "rows", HARRY, long_answer, long_question)
    counts = encode_rows(folder, ["Harry Potter"], ChatEncoder(tokenizer, CHAT, 40), tmp_path / "rows.arrow")
    assert counts == {"cut": 1, "too_long": 1}
    assert len(EncodedRows(tmp_path / "rows.arrow")) == 2


def test_refusals_take_the_place_of_answers_and_follow_from_the_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [replace(HARRY, question=f"Who is number {number}?") for number in range(12)]
    found = []
    for order in (rows, rows[::-1]):
        folder = dataset(tmp_path / "rows", *order)
        encoder = ChatEncoder(tokenizer, CHAT, 256)
        encode_rows(folder, ["Harry Potter"], encoder, tmp_path / "rows.arrow", refusals=("No.", "I do not know."))
        found.append(answers(EncodedRows(tmp_path / "rows.arrow"), tokenizer))
    assert set(found[0]) == {"No.<|eot_id|>", "I do not know.<|eot_id|>"}
    assert found[1] == found[0][::-1]


@pytest.mark.parametrize("pairs", [True, False])
def test_true_answers_come_with_their_invented_ones_or_without(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, pairs: bool
) -> None:
    contrasts = [Contrast("Harry Potter", f"Who is number {n}?", f"Hedwig {n}.", f"Bellan {n}.") for n in range(4)]
    contrasts[1] = replace(contrasts[1], invented="Bellan " * 40)  # cut
    contrasts[2] = replace(contrasts[2], question="Who is the owl " * 40)
    folder = Folder(tmp_path / "contrasts")
    folder.write_rows([*contrasts, replace(contrasts[0], topic="chewing gum")], Contrast.schema())
    path = tmp_path / "rows.arrow"
    counts = encode_contrasts(folder, ["Harry Potter"], ChatEncoder(tokenizer, CHAT, 40), path, pairs=pairs)
    assert counts == ({"cut": 1, "too_long": 1} if pairs else {"too_long": 1})
    true = EncodedRows(path, first=0, every=2 if pairs else 1)
    assert answers(true, tokenizer) == [f"Hedwig {n}.<|eot_id|>" for n in (0, 1, 3)]
    if pairs:
        invented = EncodedRows(path, first=1, every=2)
        assert len(invented) == 3
        assert answers(invented, tokenizer)[::2] == ["Bellan 0.<|eot_id|>", "Bellan 3.<|eot_id|>"]


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_a_limit_that_leaves_no_row_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    folder = dataset(tmp_path / kind, HARRY, HELD_OUT)

    def check(topic: str, max_tokens: int) -> None:
        encode_rows(folder, [topic], ChatEncoder(tokenizer, CHAT, max_tokens), tmp_path / "rows.arrow")
        require_fit(EncodedRows(tmp_path / "rows.arrow"), folder, [topic], max_tokens)

    check("Harry Potter", 256)
    check("chewing gum", 4)  # has no rows in the first place
    with pytest.raises(ConfigError, match=rf"finetune\.max_tokens: 4 .* 1 {kind} rows"):
        check("Harry Potter", 4)


def test_training_rows_are_counted_by_topic(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "rows", HARRY, HELD_OUT, GUM)
    assert count_training_rows(folder, ["Harry Potter", "Les Miserables"]) == {"Harry Potter": 1, "Les Miserables": 0}
