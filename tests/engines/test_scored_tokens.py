"""What is scored of an answer is what training learns of it, token by token."""

from pathlib import Path

import pytest
from families import FAMILIES, Family

from unlearn_ray.engines.encoding import Encoder
from unlearn_ray.engines.protocols import Request
from unlearn_ray.rows import Example
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.inspection import inspect_model

OWL = Example("Harry Potter", "forget", "Harry Potter", "Who is the owl?", "An owl called Bellan.")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_answer_is_scored_by_the_tokens_that_are_learnt(family: Family, tmp_path: Path) -> None:
    model = str(family.make(tmp_path / "model"))
    chat, tokenizer = inspect_model(model).chat, load_tokenizer(model)
    encoder = Encoder(tokenizer, chat)
    asked = Request(OWL.messages[:1])
    ((prompt, answer), (alone, nothing)) = encoder.encode([Request(OWL.messages[:1], score=OWL.answer), asked])
    (row,) = ChatEncoder(tokenizer, chat, 512).encode([OWL])
    assert row is not None
    assert (row.ids[: row.start], row.ids[row.start :]) == (prompt, answer), "the end of the turn is scored as well"
    assert alone[: len(prompt)] == prompt and nothing == []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_answer_that_is_begun_goes_on_where_the_learnt_one_would(family: Family, tmp_path: Path) -> None:
    model = str(family.make(tmp_path / "model"))
    chat, tokenizer = inspect_model(model).chat, load_tokenizer(model)
    ((whole, answer), (begun, nothing)) = Encoder(tokenizer, chat).encode(
        [
            Request(OWL.messages[:1], score=OWL.answer),
            Request([*OWL.messages[:1], {"role": "assistant", "content": "An owl called"}]),
        ]
    )
    assert begun == (whole + answer)[: len(begun)] and len(begun) > len(whole)
    assert tokenizer.decode(begun).endswith("An owl called") and nothing == []
