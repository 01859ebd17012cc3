"""A model under attack in this process: its weights, and what it answers, prefers and holds inside.

Plain torch and transformers, no engine: an attack changes weights or reads states, which an engine does not let it do. One model is loaded at a
time. On a CPU it runs in float32; on a GPU in float32 where training all of it fits, else in bfloat16.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from unlearn_ray.attacks.attack import Hit, Setup, Target, fact_of
from unlearn_ray.chat import ChatFormat
from unlearn_ray.evals.metrics import choice, fact_recall
from unlearn_ray.evals.probes import PlacedProbe, wrong_references
from unlearn_ray.rows import Example, digest
from unlearn_ray.train.chat import ChatEncoder, Encoded, load_tokenizer
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.models import load_base

ROWS_PER_PASS = 64
MAX_TOKENS = 1024
# Weight, gradient and the two moments of AdamW, each in float32, and as much again for activations and a copy of the weights.
TRAINING_BYTES = 24
Values = dict[str, float]  # by the probe's id


@dataclass(frozen=True)
class Local:
    """A model with its tokenizer and chat format."""

    target: Target
    module: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    device: torch.device
    max_tokens: int  # of an answer

    @property
    def encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer, self.chat, MAX_TOKENS)

    def encode(self, rows: Sequence[tuple[str, str]]) -> list[Encoded | None]:
        """Questions with their answers; None where a question alone is too long."""
        return self.encoder.encode([Example("", "far", "", question, answer) for question, answer in rows])

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids up to where an answer is asked for."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                tokenize=False,
                add_generation_prompt=True,
                **dict(self.chat.template_arguments),
            )
            for question in questions
        ]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def answers(self, questions: Sequence[str]) -> list[str]:
        """Greedy answers."""
        prompts, found = self.prompts(questions), [""] * len(questions)
        for taken in passes([len(ids) for ids in prompts]):
            longest = max(len(prompts[number]) for number in taken)
            ids_BL, mask_BL = self.padded([prompts[number] for number in taken], left=True)
            output_BL = self.module.generate(
                input_ids=ids_BL, attention_mask=mask_BL, max_new_tokens=self.max_tokens, do_sample=False
            )
            texts = self.tokenizer.batch_decode(output_BL[:, longest:], skip_special_tokens=True)
            for number, text in zip(taken, texts, strict=True):
                found[number] = text
        return found

    def padded(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows as one tensor, and which of its tokens are theirs."""
        longest = max(len(row) for row in rows)
        ids_BL = torch.full((len(rows), longest), self.chat.pad_token_id)
        mask_BL = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids_BL[number, place] = torch.tensor(row)
            mask_BL[number, place] = 1
        return ids_BL.to(self.device), mask_BL.to(self.device)

    @torch.no_grad()
    def logps(self, rows: Sequence[Encoded]) -> list[list[float]]:
        """Log-probability of each answer's tokens, the end of its turn included."""
        found: list[list[float]] = [[] for _ in rows]
        for taken in passes([len(row.ids) for row in rows]):
            # Filled up to the right, where a causal model never looks: no attention mask is needed.
            ids_BL, _ = self.padded([rows[number].ids for number in taken])
            logits_BLV = self.module(input_ids=ids_BL[:, :-1], use_cache=False).logits
            for place, number in enumerate(taken):
                row = rows[number]
                logits_NV = logits_BLV[place, row.start - 1 : len(row.ids) - 1].float()
                targets_N = torch.tensor(row.ids[row.start :], device=self.device)
                logps_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)
                found[number] = logps_N.tolist()
        return found

    def recall(self, probes: Sequence[PlacedProbe]) -> Values:
        """Whether the greedy answer has the true one; without the probes whose answer is no short fact."""
        answers = self.answers([each.probe.question for each in probes])
        found = {}
        for each, answer in zip(probes, answers, strict=True):
            value = fact_recall(answer, (each.probe.answer, *each.probe.aliases))
            if value is not None:
                found[each.probe.id] = value
        return found

    def choice(self, probes: Sequence[PlacedProbe]) -> Values:
        """Whether the true reference is likelier than each wrong one; without the probes that have no wrong one."""
        asked = [each.probe for each in probes if each.probe.wrong]
        texts = [[probe.reference or probe.answer, *wrong_references(probe)] for probe in asked]
        rows = self.encode([(probe.question, text) for probe, many in zip(asked, texts, strict=True) for text in many])
        logps = iter(self.logps([row for row in rows if row is not None]))
        each_row, found = iter(rows), {}
        for probe, many in zip(asked, texts, strict=True):
            scored = [next(logps) if next(each_row) is not None else [] for _ in many]
            if (value := choice(scored[0], scored[1:])) is not None:
                found[probe.id] = value
        return found

    def hits(self, attack: str, setting: str, at: float, probes: Sequence[PlacedProbe]) -> Iterator[Hit]:
        """Recall and choice of the model as it is now."""
        self.module.eval()
        for metric, values in (("recall", self.recall(probes)), ("choice", self.choice(probes))):
            yield from hits_of(attack, setting, self.target, at, metric, probes, values)


def hits_of(
    attack: str,
    setting: str,
    target: Target,
    at: float,
    metric: str,
    probes: Sequence[PlacedProbe],
    values: Values,
) -> Iterator[Hit]:
    for each in probes:
        if each.probe.id in values:
            value = values[each.probe.id]
            yield Hit(attack, setting, target.name, float(at), metric, each.probe.id, fact_of(each.probe), value)


def load(target: Target, setup: Setup) -> Local:
    """Load a target, which is talked to as the run talks to it; an adapter is merged into its weights, as who has the weights would do.

    Raises:
        ModelError: the model, or its tokenizer, can't be loaded.
        ConfigError: what the run says of the chat format does not fit the model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module: Any = load_base(target.path, torch.float32 if device.type == "cpu" else torch.bfloat16, torch.device("cpu"))
    if device.type == "cuda" and can_train_all(module, device):
        module = module.float()
    module = module.to(device)
    if target.adapter:
        from peft import PeftModel

        module = PeftModel.from_pretrained(module, target.adapter, autocast_adapter_dtype=False).merge_and_unload()
    chat = inspect_model(target.path, setup.chat).chat
    # Greedy answers are greedy, whatever penalties the model's own generation config has.
    module.generation_config = GenerationConfig(
        pad_token_id=chat.pad_token_id, eos_token_id=list(chat.stop_token_ids) or None
    )
    return Local(target, module.eval(), load_tokenizer(target.path), chat, device, setup.max_tokens)


def can_train_all(module: Any, device: torch.device) -> bool:
    """Whether the device's memory holds what training all weights in float32 takes. On a CPU nobody asks: it has swap, and small models."""
    if device.type == "cpu":
        return True
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    return TRAINING_BYTES * num_parameters <= torch.cuda.get_device_properties(device).total_memory


def passes(lengths: Sequence[int], size: int = ROWS_PER_PASS) -> Iterator[list[int]]:
    """Positions of rows, those of like length together."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    for first in range(0, len(order), size):
        yield order[first : first + size]


def chosen(probes: Sequence[PlacedProbe], max_probes: int | None) -> list[PlacedProbe]:
    """At most so many probes, of as many facts as possible: a wording of each fact first, then another of each. The same ones always."""
    if max_probes is None or len(probes) <= max_probes:
        return list(probes)
    rounds: dict[str, list[PlacedProbe]] = {}
    for each in sorted(probes, key=lambda each: digest("attacked", each.probe.id)):
        rounds.setdefault(fact_of(each.probe), []).append(each)
    facts = sorted(rounds, key=lambda fact: digest("attacked", fact))
    longest = max(map(len, rounds.values()))
    ordered = [rounds[fact][place] for place in range(longest) for fact in facts if place < len(rounds[fact])]
    return ordered[:max_probes]


def shuffled(rows: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """Each row once, in an order that follows from the seed."""
    different = sorted(set(rows))
    random.Random(seed).shuffle(different)
    return different
