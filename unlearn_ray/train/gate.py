"""The gate of a training: it scores the model on held-out rows during the training. Given answers are scored; nothing is generated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_ray.errors import ConfigError
from unlearn_ray.evals.metrics import prefers
from unlearn_ray.rows import Example, GateRow
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, Encoded
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.gate_records import GateRecord, score_of
from unlearn_ray.train.records import finite
from unlearn_ray.train.reference import base_logps

MAX_ROWS = 48  # per kind, forget and retain: an evaluation then costs about as much as a step
KINDS = ("forget", "retain")


class Gate:
    """Rows to score, each with its true answer first. Every rank has all rows, and scores its share.

    Args:
        folder: local folder for the encoded answers.
        micro_batch, micro_tokens: limits of a forward pass, as in training.
    """

    def __init__(
        self,
        rows: Sequence[GateRow],
        encoder: ChatEncoder,
        folder: Path,
        *,
        micro_batch: int,
        world_size: int,
        pad_id: int,
        micro_tokens: int | None = None,
    ) -> None:
        self._encoder, self._folder = encoder, folder
        self._options: dict[str, Any] = {
            "micro_batch": micro_batch,
            "micro_tokens": micro_tokens,
            "world_size": world_size,
            "pad_id": pad_id,
        }
        self.rows: list[GateRow] = []
        encoded: list[Encoded] = []
        for row in rows:
            answers = [Example(row.topic, row.group, row.topic, row.question, text) for text in (row.true, *row.wrong)]
            found = [each for each in encoder.encode(answers) if each is not None and not each.is_cut]
            if len(found) == len(answers):  # no answer was cut at finetune.max_tokens
                self.rows.append(row)
                encoded += found
        file = folder / f"{len(encoded)}.arrow"
        write_encoded(file, encoded)
        self._num_tokens = [each.num_answer_tokens for each in encoded]
        self._batches = self._batched(EncodedRows(file)) if encoded else None

    def _batched(self, rows: EncodedRows) -> Batches:
        return Batches(rows, None, forget_batch=len(rows), retain_batch=0, seed=0, **self._options)

    def known(self, runtime: Any) -> "Gate":
        """A gate with only the rows whose true answer the model prefers, at most `MAX_ROWS` per kind. What the base model never knew can be
        neither forgotten nor kept.

        Raises:
            ConfigError: there is no such forget row.
        """
        kept: dict[str, list[GateRow]] = {kind: [] for kind in KINDS}
        for row, logps in zip(self.rows, self._scored(runtime), strict=True):
            if _prefers_truth(logps) and len(kept[kind_of(row)]) < MAX_ROWS:
                kept[kind_of(row)].append(row)
        if not kept["forget"]:
            num = sum(kind_of(row) == "forget" for row in self.rows)
            raise ConfigError(
                f"finetune.evaluate_every: the model prefers its own answer to the wrong ones for none of {num} held-out forget questions, so the gate would show nothing: leave evaluate_every out, or raise dataset.holdout_fraction"
            )
        return Gate([row for rows in kept.values() for row in rows], self._encoder, self._folder, **self._options)

    @property
    def num_rows(self) -> dict[str, int]:
        return {kind: sum(kind_of(row) == kind for row in self.rows) for kind in KINDS}

    @property
    def chance(self) -> float:
        """Choice on the forget rows of a model without any knowledge."""
        shares = [1 / (1 + len(row.wrong)) for row in self.rows if kind_of(row) == "forget"]
        return sum(shares) / len(shares)

    def look(self, runtime: Any, step: int) -> GateRecord:
        """Score the model after `step` steps. The result is the same on every rank."""
        choices: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        losses: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
        place = 0
        for row, logps in zip(self.rows, self._scored(runtime), strict=True):
            choices[kind_of(row)].append(_prefers_truth(logps))
            losses[kind_of(row)].append((-logps[0] * self._num_tokens[place], self._num_tokens[place]))
            place += len(logps)
        loss = {kind: sum(a for a, _ in found) / sum(b for _, b in found) for kind, found in losses.items() if found}
        choice = {kind: sum(found) / len(found) for kind, found in choices.items() if found}
        retain = choice.get("retain")
        return GateRecord(
            step,
            finite(loss["forget"]),
            choice["forget"],
            finite(loss["retain"]) if "retain" in loss else None,
            retain,
            score_of(choice["forget"], retain, self.chance),
        )

    def _scored(self, runtime: Any) -> list[list[float]]:
        """The mean log-probability per token of each row's answers, including the end of turn."""
        if self._batches is None:
            return []
        runtime.module.eval()
        found, _ = base_logps(runtime, self._batches, 1)
        runtime.module.train()
        means = [float(total) / number for total, number in zip(found, self._num_tokens, strict=True)]
        each = iter(means)
        return [[next(each) for _ in (row.true, *row.wrong)] for row in self.rows]


def kind_of(row: GateRow) -> str:
    return "forget" if row.group == "forget" else "retain"


def _prefers_truth(logps: Sequence[float]) -> bool:
    """Whether the true answer, which comes first, is likelier per token than each wrong one."""
    return prefers(logps[0], logps[1:])
