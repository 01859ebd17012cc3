"""The state of a training in parts: what some ranks wrote, others read."""

from pathlib import Path

import pytest
import torch

from unlearn_ray.engines.shards import Block, Part, load_shards, save_shard, share
from unlearn_ray.errors import ArtifactError

SIZES = {"a": 7, "b": 1, "c": 12}  # elements of each weight
Blocks = list[Block]


def whole() -> dict[str, torch.Tensor]:
    return {name: torch.randn(size) for name, size in SIZES.items()}


def in_a_row(rank: int, world_size: int) -> Blocks:
    """As stages 1 and 2 have it: all weights in a row, cut into runs, the last of which is filled up."""
    length = -(-sum(SIZES.values()) // world_size)
    first, parts, at = rank * length, [], 0
    for name, size in SIZES.items():
        start, stop = max(at, first), min(at + size, first + length)
        if start < stop:
            parts.append(Part(name, start - at, stop - start, start - first))
        at += size
    return [Block(torch.zeros(length, requires_grad=True), 0, length, tuple(parts))] if parts else []


def each_cut(rank: int, world_size: int) -> Blocks:
    """As stage 3 has it: each weight cut into runs, those of a rank in a row, with what fills them up."""
    parts, at = [], 0
    for name, size in SIZES.items():
        length = -(-size // world_size)
        if (numel := min(length, size - rank * length)) > 0:
            parts.append(Part(name, rank * length, numel, at))
        at += length
    return [Block(torch.zeros(at, requires_grad=True), 0, at, tuple(parts))]


def shared_out(rank: int, world_size: int) -> Blocks:
    """As stage 0 writes it: weights that all ranks hold, a share of each."""
    found = []
    for name, size in SIZES.items():
        first, numel = share(size, rank, world_size)
        if numel:
            owner = torch.zeros(size, requires_grad=True)
            found.append(Block(owner, first, numel, (Part(name, first, numel, 0),)))
    return found


def parts_of(blocks: Blocks) -> list[tuple[Block, Part]]:
    return [(block, part) for block in blocks for part in block.parts]


def put(
    blocks: Blocks, values: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], step: float
) -> torch.optim.AdamW:
    """Blocks that hold these values, and an optimizer with this state of them."""
    optimizer = torch.optim.AdamW([block.owner for block in blocks])
    for block in blocks:
        state = {key: torch.zeros_like(block.owner.detach()) for key in ("exp_avg", "exp_avg_sq")}
        for part in block.parts:
            there, here = slice(part.start, part.start + part.numel), slice(part.offset, part.offset + part.numel)
            block.of(block.owner)[here] = values[part.name][there]
            block.of(state["exp_avg"])[here] = moments[part.name][there]
            block.of(state["exp_avg_sq"])[here] = moments[part.name][there] ** 2
        optimizer.state[block.owner] = {"step": torch.tensor(step), **state}
    return optimizer


@pytest.mark.parametrize("writes", [in_a_row, each_cut, shared_out])
@pytest.mark.parametrize("reads", [in_a_row, each_cut])
@pytest.mark.parametrize(("num_writers", "num_readers"), [(1, 2), (2, 1), (3, 2), (2, 5), (5, 3)])
def test_any_number_of_ranks_reads_what_others_wrote(
    writes: object, reads: object, num_writers: int, num_readers: int, tmp_path: Path
) -> None:
    values, moments = whole(), whole()
    for rank in range(num_writers):
        blocks = writes(rank, num_writers)  # type: ignore[operator]
        if blocks:
            save_shard(tmp_path, blocks, put(blocks, values, moments, 5.0), rank)
        else:
            save_shard(tmp_path, [], torch.optim.AdamW([torch.zeros(1)]), rank)
    seen = dict.fromkeys(SIZES, 0)
    for rank in range(num_readers):
        blocks = reads(rank, num_readers)  # type: ignore[operator]
        if not blocks:
            continue
        optimizer = torch.optim.AdamW([block.owner for block in blocks])
        with torch.no_grad():
            load_shards(tmp_path, blocks, optimizer)
        for block, part in parts_of(blocks):
            state = optimizer.state[block.owner]
            there, here = slice(part.start, part.start + part.numel), slice(part.offset, part.offset + part.numel)
            assert torch.equal(block.owner.detach()[here], values[part.name][there])
            assert torch.equal(state["exp_avg"][here], moments[part.name][there])
            assert torch.equal(state["exp_avg_sq"][here], moments[part.name][there] ** 2)
            assert float(state["step"]) == 5.0
            seen[part.name] += part.numel
        optimizer.step()  # it is a state that torch goes on with
    assert seen == SIZES


def test_what_ranks_hold_alike_is_written_once(tmp_path: Path) -> None:
    values, moments = whole(), whole()
    for rank in range(2):
        blocks = shared_out(rank, 2)
        save_shard(tmp_path, blocks, put(blocks, values, moments, 1.0), rank)
    num_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert num_bytes < 3 * 4 * sum(SIZES.values()) + 2 * 2048  # float32, thrice: and a head per file


def test_an_optimizer_without_a_step_stays_so(tmp_path: Path) -> None:
    blocks = in_a_row(0, 1)
    save_shard(tmp_path, blocks, torch.optim.AdamW([blocks[0].owner]), 0)
    again = each_cut(0, 1)
    optimizer = torch.optim.AdamW([again[0].owner])
    with torch.no_grad():
        load_shards(tmp_path, again, optimizer)
    assert not optimizer.state[again[0].owner]


def test_a_checkpoint_that_lacks_a_part_is_refused_in_one_line(tmp_path: Path) -> None:
    values, moments = whole(), whole()
    for rank in range(2):
        blocks = in_a_row(rank, 2)
        save_shard(tmp_path, blocks, put(blocks, values, moments, 1.0), rank)
    wanted = in_a_row(0, 1)

    def refusal() -> str:
        with pytest.raises(ArtifactError) as refused, torch.no_grad():
            load_shards(tmp_path, wanted, torch.optim.AdamW([wanted[0].owner]))
        return str(refused.value)

    (tmp_path / "state-00001.safetensors").write_bytes(b"cut")
    assert "state-00001.safetensors can't be read" in refusal()
    (tmp_path / "state-00001.safetensors").unlink()
    assert "c has 2 of 12 elements: rerun with --from finetune" in refusal()
    (tmp_path / "state-00000.safetensors").unlink()
    assert "holds no state" in refusal()
