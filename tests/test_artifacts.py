"""Folders and manifests: whole or not at all."""

import errno
import json
import pickle
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from unlearn_ray.artifacts import MANIFEST, Folder, _list, fingerprint_of, read_manifest
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import ArtifactError, StorageError
from unlearn_ray.rows import Question
from unlearn_ray.serving.service import free_port
from unlearn_ray.stages.asking import ASKED, Prompted, ask, tokens_of
from unlearn_ray.stages.gathering import Prompt
from unlearn_ray.stages.stage import STARTED, finished_manifest, open_stage, state_of


def test_rows_stream_through_several_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn_ray.artifacts.ROWS_PER_FILE", 10)
    folder = Folder(tmp_path / "rows")
    assert folder.write_rows((Question("t", str(i)) for i in range(25)), Question.schema()) == 25
    assert len(folder.names(".parquet")) == 3
    assert [row["text"] for row in folder.read_rows()] == [str(i) for i in range(25)]
    assert folder.count_rows() == 25


def test_no_rows_still_leave_a_file_with_the_schema(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "rows")
    assert folder.write_rows([], Question.schema()) == 0
    assert folder.names(".parquet") and list(folder.read_rows()) == []


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "rows").make()
    (tmp_path / "rows" / "00000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ArtifactError, match=r"00000\.parquet can't be read"):
        list(folder.read_rows())


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="can't be created"):
        (Folder(tmp_path / "file") / "below").make()


def test_a_stage_is_skipped_only_while_nothing_that_matters_changed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "questions")
    first = open_stage(folder, "questions", 1, {"num": 3}, {"model": "a"})
    assert first.state == "fresh"
    first.finish({"rows": 3}, {"leak": 1})
    assert open_stage(folder, "questions", 1, {"num": 3}, {"model": "a"}).is_finished
    assert finished_manifest(folder).drops == {"leak": 1}
    assert open_stage(folder, "questions", 1, {"num": 4}, {"model": "a"}).state == "redone"


def test_work_of_another_config_is_cleared_and_work_of_the_same_is_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "questions")
    open_stage(folder, "questions", 1, {"num": 3}, {})
    (folder / "rows").write_rows([Question("t", "q")], Question.schema())
    assert open_stage(folder, "questions", 1, {"num": 3}, {}).state == "resumed"
    assert (folder / "rows").count_rows() == 1
    assert open_stage(folder, "questions", 2, {"num": 3}, {}).state == "redone"
    assert not (folder / "rows").exists()


@pytest.mark.parametrize("name", [MANIFEST, STARTED])
@pytest.mark.parametrize("content", [b'{"fingerprint": ', b"\x80\x81", b"[]"])
def test_a_half_written_marker_means_the_work_is_redone(tmp_path: Path, name: str, content: bytes) -> None:
    folder = Folder(tmp_path / "questions").make()
    (folder.local / name).write_bytes(content)
    assert read_manifest(folder) is None
    assert state_of(folder, fingerprint_of("questions", 1, {}, {})) == "redone"


def test_a_finished_stage_counts_its_tables(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "questions")
    stage = open_stage(folder, "questions", 1, {}, {})
    (folder / "rows").write_rows([Question("t", "a"), Question("t", "b")], Question.schema())
    (folder / "entities").write_rows([], Question.schema())
    (folder / "rounds" / "000").write_rows([Question("t", "a")], Question.schema())
    stage.finish({"kept": 2}, {})
    assert finished_manifest(folder).tables == {"entities": 0, "rows": 2}


def test_a_folder_that_may_not_be_entered_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:  # a real one stops everybody but root
        def get_file_info(self, path: str) -> None:
            raise PermissionError(13, f"Failed stat()ing path '{path}'")

    monkeypatch.setattr(Folder, "_open", lambda self: (Closed(), self.uri))
    with pytest.raises(ArtifactError, match=r"closed/run can't be read: .*Failed stat"):
        Folder(tmp_path / "closed" / "run").exists("run.json")


@contextmanager
def little_room(num_bytes: int) -> Iterator[None]:
    """What a full disk does to one process: no file of its grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_disk_does_not_hold_is_one_line_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "rows")
    folder.write_text("kept", "before")
    rows = [
        Question("t", f"{number} " + "".join(random.Random(number).choices("abcdefgh", k=80)))
        for number in range(2_000)
    ]
    for write in (
        lambda: folder.write_text("text", "x" * 100_000),
        lambda: folder.write_lines("lines", ("x" * 1_000 for _ in range(100))),
        lambda: folder.write_rows(rows, Question.schema()),
        lambda: folder.write_text("kept", "x" * 100_000),
    ):
        folder.make()
        with (
            little_room(20_000),
            pytest.raises(StorageError, match=r"/rows/\S+ can't be written: .*File too large") as caught,
        ):
            write()
        assert "\n" not in str(caught.value) and caught.value.errno == errno.EFBIG
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it comes back from a worker"
        assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    assert folder.write_rows(rows, Question.schema()) == len(rows)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_caller_that_fails_or_is_stopped_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def lines() -> Iterator[str]:
        yield "one"
        raise error

    with pytest.raises(error):
        Folder(tmp_path).write_lines("lines", lines())
    assert not list(tmp_path.iterdir())


def test_an_object_store_that_is_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    lost = Folder(f"s3://bucket/run?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1")
    with pytest.raises(StorageError, match=r"^s3://bucket/run\S* can't be read: .*NETWORK_CONNECTION") as caught:
        lost.names()
    assert "\n" not in str(caught.value)


def test_work_whose_folder_vanished_is_not_called_finished(tmp_path: Path) -> None:
    stage = open_stage(Folder(tmp_path / "answers"), "answers", 1, {}, {})
    shutil.rmtree(tmp_path / "answers")
    with pytest.raises(ArtifactError, match="answers vanished while it was written to: the same command"):
        stage.finish({"rows": 1}, {})
    assert not (tmp_path / "answers").exists()


def test_an_asking_whose_folder_vanished_tells_of_that_and_of_no_missing_rows(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        shutil.rmtree(tmp_path / "asked", ignore_errors=True)
        return "gone"

    prompts = [Prompt("t", "Who?")]
    with pytest.raises(ArtifactError, match="asked vanished while it was written to"):
        ask(
            ScriptedGenerator(answer),
            Folder(tmp_path / "asked"),
            lambda: prompts,
            Prompt.schema(),
            Prompted(0, {}, 8),
            lambda row, replies: [],
            Prompt.schema(),
            label="asked",
        )


def test_tokens_of_a_stage_are_those_of_all_its_askings(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "answers")
    (folder / "told").write_text(ASKED, json.dumps({"prompt_tokens": 5, "prefix_queries": 5, "prefix_hits": 3}))
    (folder / "asked" / "000").write_text(
        ASKED, json.dumps({"prompt_tokens": 7, "prefix_queries": 7, "prefix_hits": 6})
    )
    (folder / "asked" / "001").write_text(ASKED, "{}")
    assert tokens_of(folder) == {"prompt_tokens": 12, "prefix_queries": 12, "prefix_hits": 9}


def test_an_unfinished_input_says_which_stage_to_rerun(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="answers is unfinished: finish it with unlearn-ray run CONFIG"):
        finished_manifest(Folder(tmp_path / "answers"))


@pytest.mark.parametrize("home", ["/runs/x", "s3://bucket/x", "s3://bucket/x?scheme=http&endpoint_override=http://h:1"])
def test_a_folder_lies_in_its_parent_options_and_all(home: str) -> None:
    assert (Folder(home) / "answers").parent == Folder(home)


def test_a_folder_is_the_same_by_relative_and_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("runs/x") == Folder(tmp_path / "runs" / "x")
    assert Folder("s3://bucket/a/").uri == "s3://bucket/a"


def test_a_folder_that_is_made_while_arrow_looks_is_listed() -> None:
    filesystem = Mock()
    filesystem.get_file_info.side_effect = [FileNotFoundError("events"), ["events/1.json"]]
    assert _list(filesystem, Mock()) == ["events/1.json"]
