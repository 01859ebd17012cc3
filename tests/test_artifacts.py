"""Folders and manifests: whole or not at all."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from unlearn_ray.artifacts import MANIFEST, Folder, _list, fingerprint_of, read_manifest
from unlearn_ray.errors import ArtifactError
from unlearn_ray.rows import Question
from unlearn_ray.stages.stage import STARTED, finished_manifest, open_stage, state_of


def test_rows_stream_through_several_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn_ray.artifacts._ROWS_PER_FILE", 10)
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


def test_an_unfinished_input_says_which_stage_to_rerun(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="unlearn-ray answers CONFIG"):
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
