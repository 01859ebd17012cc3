"""Batched answers from a model folder with plain transformers, on one CPU thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_ray.pocket.corpus import Message
from unlearn_ray.pocket.measures import Answer

BATCH_SIZE = 256


def load_answer(folder: Path, seed: int = 0) -> Answer:
    """A function from message lists to answers; `seed` decides all that it ever samples."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def answer(prompts: Sequence[list[Message]], temperature: float, max_tokens: int) -> list[str]:
        texts = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts
        ]
        # Prompts of similar length share a batch, for less padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        answers = [""] * len(texts)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        for start in range(0, len(order), BATCH_SIZE):
            places = order[start : start + BATCH_SIZE]
            batch = tokenizer(
                [texts[place] for place in places], padding=True, add_special_tokens=False, return_tensors="pt"
            )
            output = model.generate(**batch, max_new_tokens=max_tokens, **sampling)
            decoded = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, decoded, strict=True):
                answers[place] = text.strip()
        return answers

    return answer
