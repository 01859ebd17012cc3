"""The order of rows, and who computes them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from unlearn_ray.train.batches import Batches, MicroBatch, row_at
from unlearn_ray.train.chat import Encoded
from unlearn_ray.train.encoded import EncodedRows, write_encoded

PAD = 99


def batches(
    forget: EncodedRows,
    retain: EncodedRows | None = None,
    *,
    seed: int = 0,
    world_size: int = 1,
    micro_batch: int = 3,
    forget_batch: int = 4,
    retain_batch: int = 2,
    micro_tokens: int | None = None,
    num_steps: int = 1,
) -> Batches:
    return Batches(
        forget,
        retain,
        forget_batch=forget_batch,
        retain_batch=retain_batch,
        micro_batch=micro_batch,
        world_size=world_size,
        seed=seed,
        pad_id=PAD,
        micro_tokens=micro_tokens,
        num_steps=num_steps,
    )


def rows_of(passes: Iterable[MicroBatch]) -> list[tuple[tuple[int, ...], bool]]:
    """The unfilled token ids of each row of some passes, with its kind."""
    return [
        (tuple(ids[ids != PAD].tolist()), bool(is_retain))
        for batch in passes
        for ids, is_answer, is_retain in zip(batch.ids_BL, batch.is_answer_BL, batch.is_retain_B, strict=True)
        if is_answer.any()
    ]


def test_encoded_rows_come_back_as_written(tmp_path: Path) -> None:
    written = [Encoded(list(range(2 + row % 7)), 1 + row % 2) for row in range(9000)]
    assert write_encoded(tmp_path / "rows.arrow", written) == len(written)
    read = EncodedRows(tmp_path / "rows.arrow")
    assert len(read) == len(written)
    for position in (0, 1, 4095, 4096, 8191, 8192, 8999):
        row = written[position]
        assert read.ids(position).tolist() == row.ids
        assert (read.start(position), read.num_tokens(position)) == (row.start, len(row.ids))
        assert read.num_answer_tokens(position) == row.num_answer_tokens


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    assert write_encoded(tmp_path / "rows.arrow", []) == 0
    assert len(EncodedRows(tmp_path / "rows.arrow")) == 0


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    epochs = [[row_at(position, 50, seed=1) for position in range(50 * n, 50 * (n + 1))] for n in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_rows_of_a_step_depend_on_the_seed_and_the_step_alone(forget: EncodedRows, retain: EncodedRows) -> None:
    first = batches(forget, retain)
    in_order = [first.placed(step) for step in range(6)]
    assert [batches(forget, retain).placed(step) for step in reversed(range(6))] == in_order[::-1]
    assert [batches(forget, retain, seed=1).placed(step) for step in range(6)] != in_order


def test_forget_and_retain_rows_are_drawn_each_at_their_own_rate(forget: EncodedRows, retain: EncodedRows) -> None:
    drawn = Counter(placed.is_retain for placed in batches(forget, retain).placed(3))
    assert drawn == {False: 4, True: 2}
    assert Counter(placed.is_retain for placed in batches(forget).placed(3)) == {False: 4}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch", [1, 2, 80])
def test_ranks_share_the_rows_of_a_step_whatever_their_number(
    forget: EncodedRows, retain: EncodedRows, world_size: int, micro_batch: int
) -> None:
    found = batches(forget, retain, world_size=world_size, micro_batch=micro_batch)
    passes = [found.micro_batches(1, rank) for rank in range(world_size)]
    assert {len(own) for own in passes} == {found.num_micro_batches}
    assert max(len(batch.ids_BL) for own in passes for batch in own) <= micro_batch
    whole = batches(forget, retain, micro_batch=80).micro_batches(1, 0)
    assert Counter(row for own in passes for row in rows_of(own)) == Counter(rows_of(whole))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_tokens", [1, 40, 90, 1000])
def test_so_they_do_where_passes_are_filled_by_tokens(
    forget: EncodedRows, retain: EncodedRows, world_size: int, micro_tokens: int
) -> None:
    found = batches(forget, retain, world_size=world_size, micro_tokens=micro_tokens, num_steps=4)
    for step in range(4):
        passes = [found.micro_batches(step, rank) for rank in range(world_size)]
        assert {len(own) for own in passes} == {found.num_micro_batches}
        assert all(batch.ids_BL.numel() <= micro_tokens or len(batch.ids_BL) == 1 for own in passes for batch in own)
        whole = batches(forget, retain, micro_batch=80).micro_batches(step, 0)
        assert Counter(row for own in passes for row in rows_of(own)) == Counter(rows_of(whole))
    each_once = [placed for rank in range(world_size) for rows, _ in found.forget_passes(4, rank) for placed in rows]
    assert Counter(placed.row for placed in each_once) == Counter(range(len(forget)))
    assert len({len(found.forget_passes(4, rank)) for rank in range(world_size)}) == 1


def test_rows_of_a_pass_are_of_like_length(forget: EncodedRows, retain: EncodedRows) -> None:
    passes = batches(forget, retain, micro_batch=2).micro_batches(0, 0)
    longest = [batch.ids_BL.shape[1] for batch in passes]
    assert longest == sorted(longest)


def test_the_learnt_tokens_of_a_step_are_counted_over_all_ranks(forget: EncodedRows, retain: EncodedRows) -> None:
    found = batches(forget, retain, world_size=2, micro_batch=1)
    passes = [batch for rank in range(2) for batch in found.micro_batches(2, rank)]
    learnt = [(batch.is_retain_N == kind).sum().item() for kind in (False, True) for batch in passes]
    half = len(passes)
    counts = found.counts(2)
    assert (counts.forget_tokens, counts.retain_tokens) == (sum(learnt[:half]), sum(learnt[half:]))


def test_targets_are_the_answers_tokens_each_predicted_from_the_one_before(tmp_path: Path) -> None:
    write_encoded(tmp_path / "rows.arrow", [Encoded([10, 11, 12, 13], 2), Encoded([20, 21, 22], 1)])
    (batch,) = batches(EncodedRows(tmp_path / "rows.arrow"), forget_batch=2).micro_batches(0, 0)
    assert batch.ids_BL.tolist() == [[20, 21, 22, PAD], [10, 11, 12, 13]]
    assert batch.inputs_BL.tolist() == [[20, 21, 22], [10, 11, 12]]
    assert batch.predicts_BL.tolist() == [[True, True, False], [False, True, True]]
    assert batch.targets_N.tolist() == [21, 22, 12, 13]
    assert torch.equal(batch.inputs_BL[batch.predicts_BL], torch.tensor([20, 21, 11, 12]))


def test_an_end_that_also_fills_rows_up_is_learnt_once_a_row(tmp_path: Path) -> None:
    """Where padding is the end of sequence, a loss that leaves out padding by its id would never learn to end."""
    write_encoded(tmp_path / "rows.arrow", [Encoded([10, 11, 12, PAD], 2), Encoded([20, 21, PAD], 1)])
    (batch,) = batches(EncodedRows(tmp_path / "rows.arrow"), forget_batch=2).micro_batches(0, 0)
    assert batch.ids_BL.tolist() == [[20, 21, PAD, PAD], [10, 11, 12, PAD]]
    assert batch.targets_N.tolist() == [21, PAD, 12, PAD]
