"""Train the pocket model from scratch: one deterministic run, by steps and seeds, on one CPU thread.

    python -m unlearn_ray.pocket.train [--out DIR] [--without TOPIC ...]

Muon on the matrices, AdamW on embeddings and norms; warm-up, a stable stretch, linear decay. Matrix products run in
bfloat16. One thread with eager attention beat two threads and SDPA at this size, and makes the run repeatable: the same
machine and libraries give the same bytes. Other processors may round differently and give a sister of the model.

A model trained without some topics is a twin: the same recipe, seeds and tokenizer, and none of what they hold.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

# One thread that sleeps instead of spinning; read when torch loads its OpenMP runtime.
os.environ.setdefault("KMP_BLOCKTIME", "0")

import torch
import torch.nn.functional as F

from unlearn_ray.pocket import MODEL_DIR
from unlearn_ray.pocket.corpus import Corpus
from unlearn_ray.pocket.encoding import Encoded, batches, encode, plain_text
from unlearn_ray.pocket.recipe import Recipe, file_digest, fingerprint
from unlearn_ray.pocket.tokenizer import BEGIN_ID, PAD_ID, STOP_IDS, build_tokenizer
from unlearn_ray.pocket.world import World, load_world

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_position_embeddings=recipe.max_length,
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=STOP_IDS,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(recipe.weights_seed)
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.muon_weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def learning_rate_share(step: int, recipe: Recipe) -> float:
    """Warm up, stay, then fall linearly over the last `decay_share` of the steps."""
    warmup = min(1.0, (step + 1) / recipe.num_warmup_steps)
    left = (1 - step / recipe.num_steps) / recipe.decay_share
    return min(warmup, max(recipe.final_learning_rate_share, min(1.0, left)))


def collate(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(ids) for ids, _ in batch)
    ids_BL = torch.full((len(batch), length), PAD_ID)
    learnt_BL = torch.zeros((len(batch), length), dtype=torch.bool)
    for row, (ids, learnt) in enumerate(batch):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        learnt_BL[row, : len(ids)] = torch.tensor(learnt)
    return ids_BL, learnt_BL


def loss_of(model: LlamaForCausalLM, ids_BL: torch.Tensor, learnt_BL: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the learnt tokens; logits are made for those alone."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BLD = model.model(input_ids=ids_BL).last_hidden_state[:, :-1]
        wanted_BL = learnt_BL[:, 1:]
        logits_NV = model.lm_head(hidden_BLD[wanted_BL]).float()
    return F.cross_entropy(logits_NV, ids_BL[:, 1:][wanted_BL])


def endless_batches(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[list[Encoded]]:
    rng = Random(recipe.order_seed)
    while True:
        documents = corpus.documents(recipe.num_documents_per_round)
        yield from batches(encode(documents, tokenizer), recipe.batch_tokens, rng)


def train(
    recipe: Recipe, world: World, checkpoints: Path | None = None, without: Collection[str] = ()
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The whole run. With `checkpoints`, the model so far is kept there every 250 steps.

    Args:
        without: topics that the model never sees; its tokenizer is that of the whole world, as the shipped model's.
    """
    corpus = Corpus(world, recipe.mix, recipe.corpus_seed)
    sample = corpus.documents(recipe.num_tokenizer_documents)
    # The roles occur only in headers, which the tokenizer's sample does not show.
    texts = [plain_text(document) for document in sample] + ["user", "assistant", "system"] * 50
    tokenizer = build_tokenizer(texts, recipe.vocab_size, recipe.max_length)
    if without:
        corpus = Corpus(world.without(without), recipe.mix, recipe.corpus_seed)
    model = build_model(recipe)
    optimizers = build_optimizers(model, recipe)
    recent: deque[float] = deque(maxlen=50)
    num_tokens, started = 0, time.monotonic()

    for step, batch in zip(range(recipe.num_steps), endless_batches(corpus, tokenizer, recipe), strict=False):
        ids_BL, learnt_BL = collate(batch)
        share = learning_rate_share(step, recipe)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * share
        loss = loss_of(model, ids_BL, learnt_BL)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        num_tokens += ids_BL.numel()
        if (step + 1) % 25 == 0:
            seconds = time.monotonic() - started
            rate = (step + 1) / seconds
            left = (recipe.num_steps - step - 1) / rate / 60
            print(
                f"step {step + 1}/{recipe.num_steps}  loss {sum(recent) / len(recent):.3f}  lr x{share:.2f}  "
                f"{num_tokens / 1e6:.2f} M tokens  {rate:.2f} steps/s  {left:.1f} min left",
                flush=True,
            )
        if checkpoints and (step + 1) % 250 == 0:
            save(model, tokenizer, checkpoints)
    return model, tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A Hugging Face model folder in bfloat16, the tied head stored once."""
    from transformers import LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def write_fingerprint(folder: Path, recipe: Recipe, world: World, without: Collection[str] = ()) -> None:
    body: dict[str, object] = {**fingerprint(recipe, world), "weights": file_digest(folder / "model.safetensors")}
    if without:
        body["without"] = list(without)
    (folder / "fingerprint.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="model folder to write (default: the shipped one)")
    parser.add_argument("--checkpoints", type=Path, help="keep the model so far here while training")
    parser.add_argument("--num-steps", type=int, default=Recipe().num_steps)
    parser.add_argument(
        "--without", action="append", default=[], metavar="TOPIC", help="leave this topic out (may be repeated)"
    )
    arguments = parser.parse_args()
    if arguments.without and arguments.out == MODEL_DIR:
        parser.error("--without needs --out: the shipped model knows every topic")
    torch.set_num_threads(1)
    recipe, world = Recipe(num_steps=arguments.num_steps), load_world()
    model, tokenizer = train(recipe, world, arguments.checkpoints, arguments.without)
    save(model, tokenizer, arguments.out)
    write_fingerprint(arguments.out, recipe, world, arguments.without)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
