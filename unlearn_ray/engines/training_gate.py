"""The gate in a training worker: it scores the model, keeps the best state, and says when to stop. Its files are beside the checkpoints, so they
survive a lost driver."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.training_job import Assignment
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import GateRow
from unlearn_ray.train.chat import ChatEncoder
from unlearn_ray.train.gate import Gate
from unlearn_ray.train.gate_records import GateRecord, is_best, read_gate, reason_to_stop, state_name, write_gate

log = logging.getLogger(__name__)
_BEST = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """The state to export."""

    record: GateRecord
    losses: tuple[float, float | None]  # on the check's rows, forget and retain; its export must reproduce them


class Gatekeeper:
    """The gate of one training; the same on every rank. Must be created before the first step, while the model is still the base model.

    Raises:
        ConfigError: no row is informative.
    """

    def __init__(self, assignment: Assignment, runtime: Any, encoder: ChatEncoder, scratch: Path) -> None:
        job, self._runtime = assignment.job, runtime
        assert job.gate is not None and job.config.evaluate_every is not None
        self._every, self.num_steps, self._stop_when = job.config.evaluate_every, job.config.num_steps, job.config.stop_when  # fmt: skip
        self._folder = job.checkpoints / f"{assignment.run}.gate"
        rows = [GateRow.of(row | {"wrong": tuple(row["wrong"])}) for row in job.gate.read_rows()]
        candidates = Gate(
            rows,
            encoder,
            scratch / f"gate-{runtime.rank}",
            micro_batch=assignment.workers.micro_batch,
            micro_tokens=assignment.workers.micro_tokens,
            world_size=dist.get_world_size(),
            pad_id=job.chat.pad_token_id,
        )
        self._gate = candidates.known(runtime)
        if self._stop_when.retain_below is not None and not self._gate.num_rows["retain"]:
            raise ConfigError(
                "finetune.stop_when.retain_below: there is no held-out retain row that the model knows: leave retain_below out, or raise dataset.holdout_fraction"
            )
        self._base = self._gate.look(runtime, 0)
        self.records = [self._base]
        self.best: Best | None = None
        self.stopped = ""
        log.info("the gate has %s rows that the model knows", self._gate.num_rows)

    def resume(self, first_step: int) -> None:
        """Resume after `first_step` steps. The best state stays valid even if it is newer than the last checkpoint."""
        found: list[Any] = [None]
        if self._runtime.rank == 0 and first_step:
            found = [(read_gate(self._folder, first_step), _read_best(self._folder))]
        dist.broadcast_object_list(found)
        if found[0] is not None:
            before, self.best = found[0]
            self.records = before or [self._base]

    def is_due(self, num_done: int) -> bool:
        return num_done % self._every == 0 or num_done == self.num_steps

    def look(self, num_done: int) -> GateRecord:
        """Score the model after `num_done` steps. Sets `stopped` to the reason if the training should end here."""
        record = self._gate.look(self._runtime, num_done)
        self.records.append(record)
        self.stopped = reason_to_stop(self._stop_when, self.records) or ""
        if self._runtime.rank == 0:
            write_gate(self._folder, self.records)
        return record

    @property
    def is_best(self) -> bool:
        """Whether the last scored state is the best one so far, and should be exported."""
        *before, last = self.records
        num_rows = min(number for number in self._gate.num_rows.values() if number)
        kept = [self.best.record] if self.best is not None else []
        return is_best(last, [*before[1:], *kept], num_rows)

    def keep(self, losses: tuple[float, float | None], weights: Mapping[str, torch.Tensor] | None) -> None:
        """Keep this state as the best, instead of the previous one.

        Args:
            weights: of this state, on rank 0. None on other ranks, and after the last step, when the weights in memory are exported.
        """
        before, self.best = self.best, Best(self.records[-1], losses)
        if weights is None:
            return  # not rank 0, or the last step
        step = self.best.record.step
        _write(self._folder, state_name(step), weights)
        # Written last: it says which file is valid.
        self._folder.write_text(_BEST, json.dumps({"record": self.best.record.to_json(), "losses": losses}))
        if before is not None and before.record.step != step:
            self._folder.remove(state_name(before.record.step))

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """The stored weights of the best state. Must be called on one rank only."""
        assert self.best is not None
        name, folder = state_name(self.best.record.step), self._folder
        if folder.is_local:
            return _loaded(folder.local / name)
        with TemporaryDirectory() as scratch:
            fs.copy_files(f"{folder.path}/{name}", f"{scratch}/{name}", source_filesystem=folder.filesystem)
            return _loaded(Path(scratch, name))


def _loaded(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def _write(folder: Folder, name: str, weights: Mapping[str, torch.Tensor]) -> None:
    folder.make()
    if folder.is_local:
        partial = folder.local / f"{name}.partial"
        torch.save(dict(weights), partial)
        partial.rename(folder.local / name)
        return
    with TemporaryDirectory() as scratch:
        torch.save(dict(weights), f"{scratch}/{name}")
        fs.copy_files(f"{scratch}/{name}", f"{folder.path}/{name}", destination_filesystem=folder.filesystem)


def _read_best(folder: Folder) -> Best | None:
    if not folder.exists(_BEST):
        return None
    found = json.loads(folder.read_text(_BEST))
    return Best(GateRecord.of_json(found["record"]), tuple(found["losses"]))
