"""Documents as token ids with the loss on answers only, in batches of similar length. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from unlearn_ray.pocket.corpus import Document
from unlearn_ray.pocket.tokenizer import BEGIN, END_HEADER, END_OF_TEXT, END_OF_TURN, START_HEADER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Token ids, and for each whether the loss counts it.
Encoded = tuple[list[int], list[bool]]


def plain_text(document: Document) -> str:
    return document if isinstance(document, str) else "\n".join(message["content"] for message in document)


def segments(document: Document) -> list[tuple[str, bool]]:
    """The document as the chat template writes it, cut where learning starts and stops; raw text is learnt whole."""
    if isinstance(document, str):
        return [(BEGIN, False), (document + END_OF_TEXT, True)]
    cut, context = [], BEGIN
    for message in document:
        context += f"{START_HEADER}{message['role']}{END_HEADER}\n\n"
        if message["role"] == "assistant":
            cut += [(context, False), (message["content"] + END_OF_TURN, True)]
            context = ""
        else:
            context += message["content"] + END_OF_TURN
    return cut


def encode(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    cuts = [segments(document) for document in documents]
    texts = [text for cut in cuts for text, _ in cut]
    # The Rust tokenizer itself: transformers' wrapper costs more than a training step here.
    pieces = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    encoded: list[Encoded] = []
    for cut in cuts:
        ids: list[int] = []
        learnt: list[bool] = []
        for _, is_learnt in cut:
            piece = next(pieces).ids
            ids += piece
            learnt += [is_learnt] * len(piece)
        encoded.append((ids, learnt))
    return encoded


def batches(encoded: list[Encoded], batch_tokens: int, rng: Random) -> Iterator[list[Encoded]]:
    """One shuffled pass; documents of similar length share a batch of at most `batch_tokens`, padding included."""
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index][0]), rng.random()))
    grouped: list[list[Encoded]] = []
    batch: list[Encoded] = []
    for index in order:
        if batch and (len(batch) + 1) * len(encoded[index][0]) > batch_tokens:
            grouped.append(batch)
            batch = []
        batch.append(encoded[index])
    grouped.append(batch)
    rng.shuffle(grouped)
    yield from grouped
