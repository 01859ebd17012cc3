"""Registry, weights and stages in s3:// and gs://, over servers on loopback."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commandline import Run, unlearn
from pyarrow import fs
from storage import Storage, gs, s3

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder, Manifest, read_manifest, write_manifest
from unlearn_ray.engines.weights import local_copy
from unlearn_ray.errors import ModelError
from unlearn_ray.rows import QAPair
from unlearn_ray.serving.names import ModelName
from unlearn_ray.serving.registry import Registry, ServiceRecord
from unlearn_ray.serving.release import candidates, publish
from unlearn_ray.train.identity import model_identity


@pytest.fixture(scope="module", params=[s3, gs])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with request.param() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage


@pytest.fixture
def bucket(storage: Storage, request: pytest.FixtureRequest) -> Folder:
    """A place of this test's own."""
    return Folder(storage.bucket) / request.node.originalname


@pytest.fixture
def run(quickstart: Run, bucket: Folder) -> Folder:
    """The quickstart's run, as a cluster leaves it in such storage."""
    target = bucket / "runs" / "pocket"
    fs.copy_files(quickstart.folder.path, target.path, destination_filesystem=target.filesystem)
    return target


def test_a_stage_is_written_and_read(bucket: Folder) -> None:
    pairs = [QAPair("Dune", f"Question {index}?", "Sand.", 0) for index in range(2_000)]
    rows = bucket / "rows"
    assert rows.write_rows(pairs, QAPair.schema()) == 2_000
    assert rows.count_rows() == 2_000 and len(list(rows.read_rows(["question"]))) == 2_000
    assert bucket.write_lines("lines.jsonl", ["{}", "{}"]) == 2
    assert read_manifest(bucket) is None
    manifest = Manifest(
        stage="answers", fingerprint="f", version=1, config={}, inputs={}, num_rows={"rows": 2_000}, drops={}
    )
    write_manifest(bucket, manifest)
    assert read_manifest(Folder(bucket.uri)) == manifest
    assert bucket.names(".json") == ["manifest.json"]
    rows.delete()
    assert not rows.exists() and bucket.exists("manifest.json")


def test_a_uri_may_name_the_endpoint(storage: Storage, bucket: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", raising=False)
    options = f"?scheme=http&endpoint_override={storage.endpoint}"
    folder = Folder(f"{bucket.uri}{options}")
    (folder / "below").write_text("note", "here")
    assert (folder / "below").name == "below" and folder.names() == ["below"]
    assert Folder(f"{bucket.uri}/below{options}").read_text("note") == "here"


def test_the_command_line_publishes_a_run_into_a_registry(run: Folder, bucket: Folder, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = unlearn(*arguments, "--registry", f"{bucket}/registry", cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "harry-potter@1 published" in said("publish", run.uri)
    assert "harry-potter@1 is published already" in said("publish", run.uri)
    assert "wizards@1 published" in said("publish", f"{run}/models/joint/finetune/model", "--name", "wizards")
    assert "wizards@2 published" in said("publish", f"{run}/models/joint/finetune/model", "--name", "wizards")
    assert "wizards is now wizards@1" in said("rollback", "wizards")
    assert "harry-potter" in said("models")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_gets_the_weights_of_a_version(
    quickstart: Run, bucket: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    registry = Registry(bucket / "registry")
    registry.record_service(ServiceRecord(model=model_identity(str(pocket.MODEL_DIR)), max_lora_rank=16))
    for candidate in candidates(quickstart.folder):
        publish(registry, candidate)
    release = Registry(registry.folder).read().find(ModelName("harry-potter"))
    assert release is not None and release.topics[0].terms
    copy = local_copy(registry.weights(release))
    trained = quickstart.folder.local / "models/joint/finetune/model"
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        file.name: file.read_bytes() for file in trained.iterdir()
    }
    assert local_copy(registry.weights(release)) == copy
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_what_was_written_anew_is_copied_anew(bucket: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bucket.write_text("weights", "old")
    assert (local_copy(bucket.uri) / "weights").read_text() == "old"
    bucket.write_text("weights", "newer")
    assert (local_copy(bucket.uri) / "weights").read_text() == "newer"


def test_weights_that_are_gone_are_named(bucket: Folder) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        local_copy(f"{bucket}/nothing")


def test_publishers_at_once_never_share_a_version(bucket: Folder) -> None:
    def begin(_: int) -> int:
        return Registry(bucket).begin("same")

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(begin, range(8)))
    assert len(set(versions)) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "s3://no-such-bucket/run", "--registry", "s3://no-such-bucket/registry"),
        ("models", "--registry", "s3://no-such-bucket/registry"),
        ("rollback", "dune", "--registry", "s3://no-such-bucket/registry"),
        ("models", "--registry", "gs://anonymous@no-such-bucket/registry?retry_limit_seconds=1"),
    ],
)
def test_a_storage_that_can_not_be_reached_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    done = unlearn(*arguments, cwd=tmp_path, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("\n") == 1 and "no-such-bucket" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
