"""The state of a training on disk. Each rank writes its part, and any number of ranks can read them.

weights.<i>                 safetensors, a file per rank: float32 masters of the learnt weights, one tensor per block of this rank
exp_avg.<i>, exp_avg_sq.<i> the optimizer's moments of the same block
the file's metadata         which part of which weight lies where in the blocks, and the optimizer's step

DeepSpeed's own checkpoints are tied to a number of ranks and a ZeRO stage, and hold the weights twice. To make them universal, a conversion rewrites
them. Here a rank looks for its parts in all files, and reads only those.
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
    """A run of a weight's elements, in row-major order, and its position in a block."""

    name: str  # of the weight
    start: int  # in the weight
    numel: int
    offset: int  # in the block


@dataclass(frozen=True, slots=True)
class Block:
    """A sequence of masters on one rank. `owner` is the tensor that the optimizer knows.

    Args:
        first: index of the block's first element in the flat `owner`.
        numel: number of elements.
    """

    owner: torch.Tensor
    first: int
    numel: int
    parts: tuple[Part, ...]

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """A view of the block in a tensor with the layout of `owner`."""
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
    # Adam has no moments until the first step that is not skipped. From then on all blocks count the same steps.
    assert len(set(steps)) <= 1
    parts = [[asdict(part) for part in block.parts] for block in blocks]
    metadata = {"parts": json.dumps(parts), "step": json.dumps(steps[0] if steps else None)}
    save_file(tensors, folder / f"state-{rank:05d}{_SUFFIX}", metadata)


def load_shards(folder: Path, blocks: Sequence[Block], optimizer: torch.optim.Optimizer) -> None:
    """Fill this rank's blocks and optimizer state from the files of any number of ranks.

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
        # torch's AdamW keeps a tensor, DeepSpeed's CPU Adam a plain number.
        is_torchs = type(optimizer).__module__.startswith("torch.")
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        device = block.owner.device if on_device else torch.device("cpu")
        state["step"] = torch.tensor(shards.step, device=device) if is_torchs else int(shards.step)
        for key in shards.keys:
            state[key] = torch.zeros_like(block.owner, requires_grad=False)
            shards.fill(block, key, block.of(state[key]))


class Shards:
    """The parts that ranks wrote into a folder.

    Raises:
        ArtifactError: the folder has no parts, or one can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.step: float | None = None  # of the optimizer; None if it has taken none
        self.keys: set[str] = set()  # names of the optimizer's state per element
        self._places: dict[str, list[tuple[Part, Path, int]]] = {}  # per weight: part, file, number of the block
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
        """Copy a block's stored elements into `values`, which has the layout of the block.

        Raises:
            ArtifactError: some elements are missing.
        """
        for part in block.parts:
            num_found = 0
            for start, stop, file, number, offset in self._overlaps(part):
                with self._open(file) as opened:
                    # The file is memory-mapped: only this slice is read.
                    found = opened.get_slice(f"{key}.{number}")[offset : offset + stop - start]
                at = part.offset + start - part.start
                values[at : at + stop - start].copy_(found)
                num_found += stop - start
            if num_found != part.numel:
                raise self._damaged(f"{part.name} has {num_found} of {part.numel} elements")

    def _overlaps(self, part: Part) -> Iterator[tuple[int, int, Path, int, int]]:
        """Stored pieces of a part: start and stop in the weight, the file, the number of its block, and the offset in the block."""
        for there, file, number in self._places.get(part.name, ()):
            start, stop = max(part.start, there.start), min(part.start + part.numel, there.start + there.numel)
            if start < stop:
                yield start, stop, file, number, there.offset + start - there.start

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except Exception as error:  # safetensors raises a class of its own
            raise self._damaged(f"{file.name} can't be read ({error})") from error

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"the checkpoint {self._folder} is damaged: {what}: rerun with --from finetune")


def share(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """First element, and number of elements, of a rank's share of a weight that all ranks hold whole."""
    first, last = (numel * number // world_size for number in (rank, rank + 1))
    return first, last - first
