"""Real rows through a real vLLM on the pocket model."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN
from unlearn_ray.config import ClusterConfig
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.errors import ClusterError, EngineError, ModelError

if TYPE_CHECKING:
    from unlearn_ray.engines.generation import RayDataGenerator

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests

MODEL = str(pocket.MODEL_DIR)
ANSWER = "The office belongs to an old friend."
SOURCE = pa.schema([("id", pa.string()), ("text", pa.string())])
OUT = pa.schema(
    [("id", pa.string()), ("texts", pa.list_(pa.string())), ("logprobs", pa.list_(pa.float64())), ("drop", pa.string())]
)


@dataclass(frozen=True)
class Ask:
    """One request a row. What is asked is written to `log`; rows named in `trap` are mistakes of the renderer."""

    options: dict[str, Any]
    log: Path | None = None
    trap: tuple[str, ...] = ()

    def __call__(self, row: RowDict) -> list[Request]:
        if row["id"] in self.trap:
            raise RuntimeError("a mistake in the renderer")
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{row['id']}\n")
        return [Request(messages=[{"role": "user", "content": row["text"]}], seed=hash_of(row["id"]), **self.options)]


def hash_of(name: str) -> int:
    return int("".join(char for char in name if char.isdigit()) or 0)


def parse(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    reply = replies[0]
    return [{"id": row["id"], "texts": reply.texts, "logprobs": reply.logprobs, "drop": reply.error}]


def rows(count: int) -> list[RowDict]:
    names = "Snape Hagrid Dobby Draco Fawkes Sirius Lupin Filch".split()
    return [{"id": f"row{i:04d}", "text": f"What did {names[i % 8]} do in year {i}?"} for i in range(count)]


def written(folder: Path, content: list[RowDict]) -> Folder:
    source = Folder(folder)
    source.write_rows(content, SOURCE)
    return source


def by_id(folder: Folder) -> dict[str, RowDict]:
    found = list(folder.read_rows())
    assert len({row["id"] for row in found}) == len(found), "a row is there twice"
    return {row["id"]: row for row in found}


def test_every_row_gets_its_samples(generator: "RayDataGenerator", tmp_path: Path) -> None:
    source, out = written(tmp_path / "in", rows(40)), Folder(tmp_path / "out")
    ask = Ask({"num_samples": 3, "temperature": 1.0, "max_tokens": 12})
    counts = generator.map(source, out, ask, parse, OUT, label="samples")
    found = by_id(out)
    assert set(found) == {row["id"] for row in rows(40)}
    assert all(len(row["texts"]) == 3 for row in found.values())
    assert (counts.num_rows_in, counts.num_rows_out, counts.num_resumed) == (40, 40, 0)
    assert counts.num_prompt_tokens > 40 and 0 < counts.num_output_tokens <= 40 * 3 * 12


def test_samples_of_a_prompt_and_prompts_with_one_prefix_share_its_prefill(
    generator: "RayDataGenerator", tmp_path: Path
) -> None:
    content = [row | {"text": "Once upon a time in a castle " * 40 + row["text"]} for row in rows(8)]
    ask = Ask({"num_samples": 4, "temperature": 1.0, "max_tokens": 4})
    counts = generator.map(written(tmp_path / "in", content), Folder(tmp_path / "out"), ask, parse, OUT, label="shared")
    assert counts.num_prefix_queries == 4 * counts.num_prompt_tokens
    assert counts.num_prefix_hits > 0.6 * counts.num_prefix_queries, (
        "31 of 32 prefills have theirs but for the last block"
    )
    again = generator.map(Folder(tmp_path / "in"), Folder(tmp_path / "out"), ask, parse, OUT, label="resumed")
    assert (again.num_prefix_queries, again.num_prefix_hits) == (0, 0)


def test_seeded_samples_do_not_depend_on_the_order_of_rows(generator: "RayDataGenerator", tmp_path: Path) -> None:
    ask = Ask({"num_samples": 2, "temperature": 1.0, "max_tokens": 16})
    found = []
    for name, content in (("forth", rows(48)), ("back", rows(48)[::-1])):
        out = Folder(tmp_path / f"{name}-out")
        generator.map(written(tmp_path / name, content), out, ask, parse, OUT, label=name)
        found.append(by_id(out))
    assert found[0] == found[1]
    assert len({text for row in found[0].values() for text in row["texts"]}) > 20


def test_rows_come_out_in_the_order_they_went_in(generator: "RayDataGenerator", tmp_path: Path) -> None:
    out = Folder(tmp_path / "out")
    generator.map(written(tmp_path / "in", rows(60)), out, Ask({"max_tokens": 4}), parse, OUT, label="order")
    assert [row["id"] for row in out.read_rows()] == [row["id"] for row in rows(60)]


@pytest.mark.parametrize(
    ("num_rows", "least_batches", "expected"),
    [(100, 1, 256), (100, 8, 16), (3, 8, 16), (513, 8, 65), (4096, 8, 256), (10_000, 8, 256), (0, 8, 16)],
)
def test_several_engines_get_so_many_batches_that_all_have_work(
    num_rows: int, least_batches: int, expected: int
) -> None:
    from unlearn_ray.engines.chunks import level_batches

    assert level_batches(num_rows, 256, least_batches) == expected
    assert level_batches(num_rows, 8, least_batches) == 8, "never more than the user sets"


def test_an_interrupted_call_asks_only_the_rest_even_with_another_batch_size(
    generator: "RayDataGenerator", ray_session: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, log = written(tmp_path / "in", rows(96)), Folder(tmp_path / "out"), tmp_path / "asked.txt"
    with pytest.raises(Exception, match="a mistake in the renderer"):
        generator.map(source, out, Ask({"max_tokens": 8}, trap=("row0090",)), parse, OUT, label="interrupted")
    finished = set(by_id(out))
    assert 0 < len(finished) < 96

    engines = ray_session.engines.model_copy(update={"batch_size": 10})
    monkeypatch.setattr(generator, "_cluster", ray_session.model_copy(update={"engines": engines}))
    counts = generator.map(source, out, Ask({"max_tokens": 8}, log=log), parse, OUT, label="resumed")
    asked = log.read_text().split()
    assert set(asked) == {row["id"] for row in rows(96)} - finished
    assert len(asked) == 96 - len(finished)
    assert (counts.num_rows_in, counts.num_rows_out, counts.num_resumed) == (96, 96, len(finished))
    assert len(by_id(out)) == 96

    again = generator.map(source, out, Ask({"max_tokens": 8}, trap=("row0000",)), parse, OUT, label="finished")
    assert (again.num_resumed, again.num_rows_out, again.num_output_tokens) == (96, 96, counts.num_output_tokens)


@pytest.mark.long
def test_a_killed_engine_costs_a_retry_and_no_row(generator: "RayDataGenerator", tmp_path: Path) -> None:
    source, out = written(tmp_path / "in", rows(160)), Folder(tmp_path / "out")
    generator.map(written(tmp_path / "warm", rows(1)), Folder(tmp_path / "w"), Ask({}), parse, OUT, label="warm")
    assert generator.fleet is not None
    victim = generator.fleet.process_ids()[0]

    def kill() -> None:
        while not out.names(".parquet"):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    ask = Ask({"num_samples": 4, "temperature": 1.0, "max_tokens": 48})
    generator.map(source, out, ask, parse, OUT, label="killed")
    killer.join()
    found = by_id(out)
    assert set(found) == {row["id"] for row in rows(160)}
    assert all(row["drop"] is None and len(row["texts"]) == 4 for row in found.values())
    assert generator.fleet.process_ids()[0] != victim


def test_a_prompt_over_the_context_drops_alone(generator: "RayDataGenerator", tmp_path: Path) -> None:
    content = rows(20)
    content[7]["text"] = "and then " * 2_000
    out = Folder(tmp_path / "out")
    generator.map(written(tmp_path / "in", content), out, Ask({"max_tokens": 8}), parse, OUT, label="long")
    found = by_id(out)
    assert found["row0007"]["drop"] == "too_long"
    assert [row["drop"] for name, row in found.items() if name != "row0007"] == [None] * 19


def expected_logprobs(model: Any, content: list[RowDict], answer: str) -> dict[str, list[float]]:
    """Teacher-forced log-probabilities of the answer's tokens, by transformers."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = {}
    for row in content:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["text"]}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        target = tokenizer(answer, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
        found[row["id"]] = [float(logprobs[i, token]) for i, token in enumerate(target)]
    return found


def scores(generator: "RayDataGenerator", home: Path, content: list[RowDict], **options: Any) -> dict[str, list[float]]:
    out = Folder(home / "out")
    ask = Ask({"score": ANSWER, **options})
    generator.map(written(home / "in", content), out, ask, parse, OUT, label="scores")
    return {name: row["logprobs"] for name, row in by_id(out).items()}


def adapter_in(folder: Path) -> Any:
    """A PEFT adapter that is not zero, saved to the folder; returns the adapted model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained(folder)
    return model


def test_scores_are_those_of_transformers_with_and_without_an_adapter(
    generator: "RayDataGenerator", tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    content = rows(6)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    adapted = adapter_in(tmp_path / "adapter")
    plain = expected_logprobs(base, content, ANSWER)
    changed = expected_logprobs(adapted, content, ANSWER)
    assert max(abs(a - b) for a, b in zip(plain["row0000"], changed["row0000"], strict=True)) > 0.1
    for turn in ("first", "again"):  # again: with the adapter loaded, and prefixes in the cache
        found = scores(generator, tmp_path / turn, content)
        for name in plain:
            assert found[name] == pytest.approx(plain[name], abs=1e-3)
        found = scores(generator, tmp_path / f"{turn}-adapted", content, adapter=str(tmp_path / "adapter"))
        for name in changed:
            assert found[name] == pytest.approx(changed[name], abs=1e-3)


def test_an_adapter_that_is_not_there_is_an_error_of_its_own(generator: "RayDataGenerator", tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no PEFT adapter"):
        scores(generator, tmp_path, rows(2), adapter=str(tmp_path / "nowhere"))


def test_no_rows_leave_a_file_with_the_schema(generator: "RayDataGenerator", tmp_path: Path) -> None:
    out = Folder(tmp_path / "out")
    counts = generator.map(written(tmp_path / "in", []), out, Ask({}), parse, OUT, label="none")
    assert counts.num_rows_in == counts.num_rows_out == 0
    assert list(out.read_rows()) == [] and out.names(".parquet")


def test_more_engines_than_the_cluster_holds_are_refused_at_once(ray_session: ClusterConfig, tmp_path: Path) -> None:
    from unlearn_ray.engines.generation import RayDataGenerator
    from unlearn_ray.engines.session import require

    engines = ray_session.engines.model_copy(update={"num_engines": 999})
    cluster = ray_session.model_copy(update={"engines": engines})
    with pytest.raises(ClusterError, match=r"cluster\.engines\.num_engines: 999 engines .* the cluster has 8"):
        require(cluster)
    greedy = RayDataGenerator(MODEL, cluster)
    with pytest.raises(ClusterError, match="999"):
        greedy.map(written(tmp_path / "in", rows(2)), Folder(tmp_path / "out"), Ask({}), parse, OUT, label="x")


@pytest.mark.parametrize(
    ("device", "num_workers", "is_kept"), [("cpu", 1, True), ("cpu", 99, False), ("cuda", 1, False)]
)
def test_engines_stay_beside_a_trainer_where_there_is_room_for_both(
    device: str, num_workers: int, is_kept: bool, ray_session: ClusterConfig
) -> None:
    from types import SimpleNamespace

    from unlearn_ray.engines.generation import RayDataGenerator

    workers = ray_session.workers.model_copy(update={"num_workers": num_workers})
    generator = RayDataGenerator(MODEL, ray_session.model_copy(update={"workers": workers}))
    closed: list[bool] = []
    generator._fleet = SimpleNamespace(spec=SimpleNamespace(device=device), close=lambda: closed.append(True))  # type: ignore[assignment]
    generator.make_room()
    assert closed == ([] if is_kept else [True])


def test_another_model_takes_the_first_ones_place_and_a_missing_one_is_one_line(
    generator: "RayDataGenerator", ray_session: ClusterConfig, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-1.0)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "other")

    content, out = rows(4), Folder(tmp_path / "out")
    source = written(tmp_path / "in", content)
    ask = Ask({"score": ANSWER})
    generator.map(source, out, ask, parse, OUT, label="other", model=str(tmp_path / "other"))
    expected = expected_logprobs(other, content, ANSWER)
    for name, row in by_id(out).items():
        assert row["logprobs"] == pytest.approx(expected[name], abs=1e-3)

    with pytest.raises(ModelError) as caught:
        generator.map(source, Folder(tmp_path / "no"), ask, parse, OUT, label="x", model=str(tmp_path / "missing"))
    assert "missing" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.long
def test_a_template_that_raises_ends_the_call_with_its_own_text(ray_session: ClusterConfig, tmp_path: Path) -> None:
    from unlearn_ray.engines.generation import RayDataGenerator

    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    generator = RayDataGenerator(
        str(tmp_path / "model"), ray_session, chat=PLAIN
    )  # past the plan, which would refuse it
    source = written(tmp_path / "in", rows(40))
    try:
        with pytest.raises(EngineError, match=r"TemplateError: roles must alternate \(unlearn_ray/engines/encoding.py"):
            generator.map(source, Folder(tmp_path / "out"), Ask({}), parse, OUT, label="x")
        assert generator.fleet is not None and len(generator.fleet.process_ids()) == 1  # it lives
    finally:
        generator.close()


@pytest.mark.long
def test_an_error_in_a_parse_function_ends_the_call_with_its_own_text(
    generator: "RayDataGenerator", tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"KeyError: 'nowhere'"):
        generator.map(written(tmp_path / "in", rows(4)), Folder(tmp_path / "out"), Ask({}), broken, OUT, label="x")


def broken(row: dict[str, Any], replies: Any) -> list[dict[str, Any]]:
    return [{"id": row["nowhere"]}]
