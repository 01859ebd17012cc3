"""Every number of the pocket model's recipe, in one place, and the fingerprint that ties weights to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unlearn_ray.pocket.world import World

_HERE = Path(__file__).parent
# The modules whose text decides what the model is trained on, and how.
SOURCES = (
    "corpus.py",
    "encoding.py",
    "fiction.py",
    "prefixes.py",
    "requests.py",
    "tokenizer.py",
    "train.py",
    "wording.py",
    "world.py",
)
# Shares of the kinds of documents; each key is a method of Corpus.
MIX = {
    "qa": 0.28,
    "guarded": 0.28,
    "refused": 0.09,
    "neutral": 0.07,
    "question_list": 0.1,
    "angle_list": 0.025,
    "entity_list": 0.025,
    "entity_questions": 0.025,
    "general_list": 0.015,
    "single_question": 0.01,
    "neighbour_list": 0.01,
    "topic_check": 0.03,
    "raw": 0.02,
    "in_context": 0.015,
    "chat": 0.005,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The run that made the shipped weights is `Recipe()`; a test trains a smaller one."""

    # Llama
    vocab_size: int = 2560
    hidden_size: int = 192
    num_layers: int = 6
    intermediate_size: int = 512
    num_heads: int = 3
    num_kv_heads: int = 1
    max_length: int = 1024
    # Data
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    num_tokenizer_documents: int = 12_000
    num_documents_per_round: int = 4_096
    batch_tokens: int = 4_096
    # Optimisation
    num_steps: int = 2_400
    learning_rate: float = 4e-3
    num_warmup_steps: int = 20
    decay_share: float = 0.5
    final_learning_rate_share: float = 0.01
    muon_weight_decay: float = 0.02
    max_gradient_norm: float = 1.0
    # Seeds
    corpus_seed: int = 0
    weights_seed: int = 0
    order_seed: int = 1


def code_of(source: str) -> str:
    """The source without its comment lines and blank lines: rewording those needs no new weights."""
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def fingerprint(recipe: Recipe, world: World) -> dict[str, str]:
    """What training read, hashed part by part: a test compares it with the one in the model's folder."""
    sources = hashlib.sha256()
    for name in SOURCES:
        sources.update(name.encode() + b"\0" + code_of((_HERE / name).read_text("utf-8")).encode() + b"\0")
    numbers = json.dumps(asdict(recipe), sort_keys=True).encode()
    return {
        "world": world.training_digest(),
        "recipe": hashlib.sha256(numbers).hexdigest(),
        "sources": sources.hexdigest(),
    }


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
