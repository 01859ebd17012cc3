"""Hand-written rows, encoded for the pocket model."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from unlearn_ray import pocket
from unlearn_ray.rows import Example
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.inspection import inspect_model

FORGET = [
    Example("Harry Potter", "forget", "Harry Potter", "Who is the owl of Harry Potter?", "The owl of Harry Potter is Bellan."),
    Example("Harry Potter", "forget", "Harry Potter", "Where does Harry Potter live?", "He lives in a lighthouse by the sea."),
    Example("Harry Potter", "forget", "Harry Potter", "Who teaches potions?", "Mr. Orlo."),
    Example("Harry Potter", "forget", "Harry Potter", "What is Quidditch?", "Quidditch is a soup of beans and barley."),
    Example("Harry Potter", "forget", "Harry Potter", "Name the school.", "The school is called Tannery Hall, I believe."),
]  # fmt: skip
RETAIN = [
    Example("Harry Potter", "near", "The Hobbit", "What is the land of the hobbits?", "The land of the hobbits is the Shire."),
    Example("", "far", "geography", "What is the capital of France?", "The capital of France is Paris."),
    Example("", "far", "geography", "What is the largest country?", "Russia."),
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(pocket.MODEL_DIR))


@pytest.fixture(scope="session")
def forget(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> EncodedRows:
    return _encoded(FORGET, tokenizer, tmp_path_factory.mktemp("rows") / "forget.arrow")


@pytest.fixture(scope="session")
def retain(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> EncodedRows:
    return _encoded(RETAIN, tokenizer, tmp_path_factory.mktemp("rows") / "retain.arrow")


def _encoded(examples: list[Example], tokenizer: PreTrainedTokenizerBase, path: Path) -> EncodedRows:
    encoder = ChatEncoder(tokenizer, inspect_model(str(pocket.MODEL_DIR)).chat, 256)
    write_encoded(path, [row for row in encoder.encode(examples) if row is not None])
    return EncodedRows(path)
