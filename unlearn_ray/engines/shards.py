"""The state of a training on disk: what each rank writes, any number of ranks can read.

weights.<i>                 safetensors, a file per rank: float32 masters of the learnt weights, a block of this rank each
exp_avg.<i>, exp_avg_sq.<i> the optimizer's moments of the same block
the file's metadata         which part of which weight lies where in the blocks, and the optimizer's step

DeepSpeed's own checkpoints belong to a number of ranks and a stage of ZeRO, hold the weights twice, and become universal only by a conversion that
writes them anew. Here a rank looks for its parts in all files, and reads those alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unlearn_ray.errors import ArtifactError

_WEIGHTS = "weights"
_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a weight's elements, in row-major order, and where it lies in a block."""

    name: str  # of the weight
    start: int  # in the weight
    numel: int
    offset: int  # in the block


@dataclass(frozen=True, slots=True)
class Block:
    """What one rank holds: masters in a row, which the optimizer knows by `owner`.

    Args:
        first: the block is `owner`, flat, from here on.
        numel: and so many elements long.
    """

    owner: torch.Tensor
    first: int
    numel: int
    parts: tuple[Part, ...]

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The block in a tensor that is laid out as its owner: a view."""
        return values.detach().view(-1)[self.first : self.first + self.numel]


def save_shard(folder: Path, blocks: Sequence[Block], optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Write this rank's blocks."""
    tensors: dict[str, torch.Tensor] = {}
    steps: list[float] = []
    for number, block in enumerate(blocks):
        tensors[f"{_WEIGHTS}.{number}"] = block.of(block.owner)
        for key, value in optimizer.state.get(block.owner, {}).items():
            if torch.is_tensor(value) and value.numel() == block.owner.numel() and key != "step":
                tensors[f"{key}.{number}"] = block.of(value)
            else:
                assert key == "step", f"an optimizer with {key} can't be saved in parts"
                steps.append(float(value))
    # A step that was skipped everywhere leaves the moments away; all blocks are learnt in each other step.
    assert len(set(steps)) <= 1
    parts = [[asdict(part) for part in block.parts] for block in blocks]
    metadata = {"parts": json.dumps(parts), "step": json.dumps(steps[0] if steps else None)}
    save_file(tensors, folder / f"state-{rank:05d}{_SUFFIX}", metadata)


def load_shards(folder: Path, blocks: Sequence[Block], optimizer: torch.optim.Optimizer) -> None:
    """Fill this rank's blocks, and the optimizer's state, from what other ranks wrote, however many they were.

    Raises:
        ArtifactError: parts are missing.
    """
    shards = Shards(folder)
    for block in blocks:
        shards.fill(block, _WEIGHTS, block.of(block.owner))
        state = optimizer.state[block.owner]
        state.clear()
        if shards.step is None:
            continue
        # As torch's AdamW keeps it; DeepSpeed's for CPUs has a plain number.
        is_torchs = type(optimizer).__module__.startswith("torch.")
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        device = block.owner.device if on_device else torch.device("cpu")
        state["step"] = torch.tensor(shards.step, device=device) if is_torchs else int(shards.step)
        for key in shards.keys:
            state[key] = torch.zeros_like(block.owner, requires_grad=False)
            shards.fill(block, key, block.of(state[key]))


class Shards:
    """The parts in a folder that ranks wrote.

    Raises:
        ArtifactError: there are none, or one can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.step: float | None = None  # of the optimizer; None where it has taken none
        self.keys: set[str] = set()  # what the optimizer keeps of each element
        self._places: dict[str, list[tuple[Part, Path, int]]] = {}  # by the weight's name; the block's number
        for file in sorted(folder.glob(f"*{_SUFFIX}")):
            self._index(file)
        if not self._places:
            raise self._damaged("it holds no state")

    def _index(self, file: Path) -> None:
        with self._open(file) as opened:
            metadata: Mapping[str, str] = opened.metadata()
            step = json.loads(metadata["step"])
            self.step = step if self.step is None else self.step
            self.keys |= {key.rpartition(".")[0] for key in opened.keys()} - {_WEIGHTS}  # noqa: SIM118
            for number, parts in enumerate(json.loads(metadata["parts"])):
                for part in parts:
                    self._places.setdefault(part["name"], []).append((Part(**part), file, number))

    def fill(self, block: Block, key: str, values: torch.Tensor) -> None:
        """Copy what there is of a block into `values`, which lie as the block does.

        Raises:
            ArtifactError: some of it is missing.
        """
        for part in block.parts:
            num_found = 0
            for start, stop, file, number, offset in self._overlaps(part):
                with self._open(file) as opened:
                    # From a memory-mapped file: only what is asked for is read.
                    found = opened.get_slice(f"{key}.{number}")[offset : offset + stop - start]
                at = part.offset + start - part.start
                values[at : at + stop - start].copy_(found)
                num_found += stop - start
            if num_found != part.numel:
                raise self._damaged(f"{part.name} has {num_found} of {part.numel} elements")

    def _overlaps(self, part: Part) -> Iterator[tuple[int, int, Path, int, int]]:
        """Where elements of a part lie: first and last in the weight, the file, its block, and from where on in that."""
        for there, file, number in self._places.get(part.name, ()):
            start, stop = max(part.start, there.start), min(part.start + part.numel, there.start + there.numel)
            if start < stop:
                yield start, stop, file, number, there.offset + start - there.start

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except Exception as error:  # a class of its own
            raise self._damaged(f"{file.name} can't be read ({error})") from error

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"the checkpoint {self._folder} is damaged: {what}: rerun with --from finetune")


def share(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """First element and number of a rank's share of a weight that all ranks hold whole."""
    first, last = (numel * number // world_size for number in (rank, rank + 1))
    return first, last - first
