"""The commands that prove a result, on a run whose engines are scripted."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from scripted_run import Engines, config_of, silent_about
from typer.testing import CliRunner

from unlearn_ray import pipeline, pocket
from unlearn_ray.cli import app
from unlearn_ray.errors import PartialError
from unlearn_ray.plan import claimed


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two topics with an adapter each; nothing was forgotten, nothing lost."""
    config = config_of(tmp_path_factory.mktemp("made"), "Dune", "Solaris", finetune={"adapters": "per_topic"})
    with claimed(config):
        pipeline.run(config, Engines())
    return config.folder.local


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "mine"))


def said(*arguments: object, code: int = 0) -> list[str]:
    """What the command says: its errors where it fails, else its output."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    return (done.stderr if code else done.output).splitlines()


def test_a_gate_that_holds_says_so_of_each_model(run: Path) -> None:
    lines = said("evaluate", run, "--require", "forget.recall<=0.5", "--require", "far.recall>=0")
    for name in ("dune", "solaris"):
        assert sum(line.startswith(f"✓ {name}: ") for line in lines) == 2


def test_a_gate_names_what_fails_with_figure_and_interval_and_exits_3(run: Path) -> None:
    lines = said("evaluate", run, "--require", "forget.recall>=0.5", "--require", "relearn.recall<=0.5", code=3)
    assert lines == [
        line
        for name in ("dune", "solaris")
        for line in (
            f"unlearn-ray: {name}: forget.recall is 0 %* [0, 98], n = 1 (not to be relied on: few probes, wide interval): forget.recall>=0.5 does not hold",
            f"unlearn-ray: {name}: relearn.recall was not measured: relearn.recall<=0.5 does not hold",
        )
    ]


def attack(run: Path, name: str, **of_another: str) -> Path:
    """Figures of a relearning attack on a model, as `unlearn-ray attack` writes them."""
    figure = {"setting": "full", "model": "unlearned", "at": 10, "metric": "recall", "value": 0.12, "interval": [0.02, 0.3], "num": 19, "num_facts": 19}  # fmt: skip
    fingerprints = {
        stage: json.loads((run / "models" / name / stage / "manifest.json").read_text())["fingerprint"]
        for stage in ("finetune", "evaluate")
    }
    report = {
        "version": 1,
        **fingerprints,
        **of_another,
        "attacks": [{"name": "relearn", "axis": "steps", "figures": [figure]}],
    }
    file = run / "models" / name / "attacks/attacks.json"
    file.parent.mkdir()
    file.write_text(json.dumps(report))
    return file


def test_a_gate_reads_the_attacks_on_each_model(run: Path) -> None:
    files = [attack(run, name) for name in ("dune", "solaris")]
    lines = said("evaluate", run, "--require", "relearn.recall@10<=0.2")
    assert "✓ dune: relearn.recall is 12 % [2, 30], n = 19, in full, at 10" in lines
    files[0].write_text('{"figures": [{}]}')
    (line,) = said("evaluate", run, "--require", "relearn.recall@10<=0.2", code=2)
    assert "attacks.json can't be read" in line


def test_the_report_shows_attacks_that_were_done_since(run: Path) -> None:
    page = run / "models/dune/evaluate/report.md"
    assert "Not attacked" in page.read_text()
    attack(run, "dune")
    lines = said("report", run, "--no-open")
    assert "tells 12 % of facts after 10 steps of relearning" in " ".join(" ".join(lines).split())
    assert "| relearn | recall | full, at 10 |" in page.read_text()
    assert "Not attacked" in (run / "models/solaris/evaluate/report.md").read_text()


@pytest.mark.parametrize("stage", ["finetune", "evaluate"])
def test_attacks_on_an_earlier_training_or_evaluation_hold_nothing(run: Path, tmp_path: Path, stage: str) -> None:
    attack(run, "dune", **{stage: "another"})
    attack(run, "solaris")
    said("certify", run, "--key", write_keys(tmp_path)[0])
    for name, number in (("dune", 0), ("solaris", 1)):
        assert len(json.loads((run / "models" / name / "certificate.json").read_text())["attacks"]) == number
    (line,) = said("evaluate", run, "--require", "relearn.recall@10<=0.2", code=3)
    assert line.startswith("unlearn-ray: dune: relearn.recall@10 was not measured")


@pytest.mark.parametrize("adapters", ["per_topic", "joint"])
def test_a_topic_that_failed_or_was_not_evaluated_holds_nothing(tmp_path: Path, adapters: str) -> None:
    """The others' figures do not speak for it: the gate says so, and nothing is certified."""
    config = config_of(tmp_path, "Dune", "Solaris", finetune={"adapters": adapters})
    with claimed(config), pytest.raises(PartialError):
        pipeline.run(config, Engines(silent_about("Solaris")))
    run, (key, _) = config.folder.local, write_keys(tmp_path)
    (line,) = said("evaluate", run, "--require", "forget.recall<=0.5", code=3)
    assert line.startswith("unlearn-ray: Solaris was not evaluated: ") and "no usable question" in line
    (line,) = said("certify", run, "--key", key, code=2)
    assert "Solaris was not evaluated" in line and not list(run.rglob("certificate.json"))


def test_a_model_that_was_trained_anew_holds_nothing(run: Path) -> None:
    manifest = run / "models/dune/finetune/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "another"}))
    (line,) = said("evaluate", run, "--require", "forget.recall<=0.5", code=3)
    assert line == "unlearn-ray: Dune was not evaluated: unfinished, or made anew since"


def test_an_unknown_figure_is_one_line_before_anything_is_done(tmp_path: Path) -> None:
    (line,) = said("evaluate", tmp_path / "nowhere.yaml", "--require", "forget.chioce<=0.35", code=2)
    assert "did you mean forget.choice?" in line and "Known are forget, near, far" in line


def test_a_run_that_is_named_is_shown_and_not_done_again(run: Path) -> None:
    lines = said("evaluate", run)
    assert [line for line in lines if line.endswith("report.html")] == [
        f"{run}/models/{name}/evaluate/report.html" for name in ("dune", "solaris")
    ]
    (line,) = said("evaluate", run, "seed=1", code=2)
    assert "give its YAML file" in line
    (run / "models/dune/evaluate/manifest.json").unlink()
    (run / "models/solaris/evaluate/manifest.json").unlink()
    (line,) = said("evaluate", run, code=2)
    assert "finish it with unlearn-ray run CONFIG" in line


def test_what_is_neither_a_run_nor_a_file_is_refused_as_ever(tmp_path: Path) -> None:
    (line,) = said("evaluate", tmp_path / "nowhere", code=2)
    assert "nowhere" in line


def write_keys(folder: Path, name: str = "key", form: str = "pem") -> tuple[Path, Path]:
    """A user's key, private and public, as openssl or ssh-keygen writes them."""
    key = Ed25519PrivateKey.generate()
    is_ssh = form == "ssh"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH if is_ssh else PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(
        Encoding.OpenSSH if is_ssh else Encoding.PEM,
        PublicFormat.OpenSSH if is_ssh else PublicFormat.SubjectPublicKeyInfo,
    )
    files = folder / f"{name}.pem", folder / f"{name}.pub"
    for file, content in zip(files, (private, public), strict=True):
        file.write_bytes(content)
    return files


@dataclass(frozen=True)
class Certified:
    certificate: Path
    model: Path
    key: Path
    public: Path

    def verify(self, *arguments: object, code: int = 0) -> list[str]:
        return said("verify", self.certificate, "--public-key", self.public, *arguments, code=code)

    def change(self, **values: object) -> None:
        found = json.loads(self.certificate.read_text())
        self.certificate.write_text(json.dumps(found | values))


@pytest.fixture
def certified(run: Path, tmp_path: Path) -> Certified:
    key, public = write_keys(tmp_path)
    attack(run, "dune")
    said("certify", run, "--key", key)
    return Certified(run / "models/dune/certificate.json", run / "models/dune/finetune/model", key, public)


def test_a_certificate_says_what_was_done_to_which_weights_with_what_result(certified: Certified, run: Path) -> None:
    found = json.loads(certified.certificate.read_text())
    assert (found["topics"], found["model"], found["unlearned"]["kind"]) == (["Dune"], "dune", "adapter")
    sha = hashlib.sha256((pocket.MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert found["base"]["files"]["model.safetensors"] == sha
    assert set(found["unlearned"]["files"]) == {"adapter_config.json"}, "the card is not a part of the weights"
    assert set(found["data"]) >= {"forget", "retain"} and found["training"]["objective"]["kind"] == "relabel"
    assert found["scores"]["models"]["unlearned"]["forget"]["fact_recall"]["num"] == 1
    assert [each["value"] for each in found["attacks"]] == [0.12]
    assert found["report"] == hashlib.sha256((run / "models/dune/evaluate/report.json").read_bytes()).hexdigest()
    assert str(run) not in certified.certificate.read_text(), "no path of the machine"
    assert (run / "models/solaris/certificate.json").exists()


def test_what_was_certified_is_verified_with_its_weights(certified: Certified) -> None:
    lines = certified.verify("--model", certified.model, "--base", pocket.MODEL_DIR)
    assert lines[0].startswith("✓ signed with this key on 20") and "has the files of the certificate" in lines[1]
    assert "unlearned Dune: recall on forget 0 % before, 0 % after" in lines[-1]
    lines = certified.verify()
    assert sum("were not checked" in line for line in lines) == 2
    (certified.model / "README.md").write_text("A card that an evaluation completed.")
    certified.verify("--model", certified.model)


def test_weights_that_change_after_the_training_are_not_certified(tmp_path: Path) -> None:
    base = tmp_path / "theirs"
    shutil.copytree(pocket.MODEL_DIR, base)
    config = config_of(tmp_path, "Dune", model=str(base))
    with claimed(config):
        pipeline.run(config, Engines())
    key, _ = write_keys(tmp_path)
    said("certify", config.folder, "--key", key)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[0:4096] = bytes(4096)
    (base / "model.safetensors").write_bytes(weights)
    (line,) = said("certify", config.folder, "--key", key, code=2)
    assert f"{base} is not the model that" in line and "changed since finetune" in line


def test_a_merged_export_is_certified_beside_its_adapter(run: Path, tmp_path: Path) -> None:
    merged = run / "models/dune/finetune/merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    (merged / "model.safetensors").write_text("weights")
    (merged / "README.md").write_text("a card")
    key, public = write_keys(tmp_path)
    said("certify", run, "--key", key)
    certificate = run / "models/dune/certificate.json"
    assert set(json.loads(certificate.read_text())["unlearned"]["merged"]) == {"config.json", "model.safetensors"}
    for folder in (merged, run / "models/dune/finetune/model"):
        lines = said("verify", certificate, "--public-key", public, "--model", folder)
        assert any("has the files of the certificate" in line for line in lines)
    (merged / "model.safetensors").write_text("others")
    (line,) = said("verify", certificate, "--public-key", public, "--model", merged, code=3)
    assert "merged/model.safetensors is not the file of the certificate" in line


def test_a_key_as_openssh_writes_it_signs_as_well(run: Path, tmp_path: Path) -> None:
    key, public = write_keys(tmp_path, form="ssh")
    said("certify", run, "--key", key)
    lines = said("verify", run / "models/dune/certificate.json", "--public-key", public)
    assert lines[0].startswith("✓ signed with this key")


def change_weights(certified: Certified) -> None:
    (certified.model / "adapter_config.json").write_text('{"r": 1}')


def add_weights(certified: Certified) -> None:
    (certified.model / "adapter_model.safetensors").write_text("more")


def remove_weights(certified: Certified) -> None:
    (certified.model / "adapter_config.json").rename(certified.model / "config.json")


def change_score(certified: Certified) -> None:
    text = certified.certificate.read_text()
    assert '"value": 0.12' in text
    certified.certificate.write_text(text.replace('"value": 0.12', '"value": 0.02'))


def change_topic(certified: Certified) -> None:
    certified.change(topics=["Dune", "Solaris"])


def sign_with_another_key(certified: Certified) -> None:
    write_keys(certified.public.parent, certified.public.stem)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (change_weights, ["adapter_config.json is not the file of the certificate"]),
        (add_weights, ["adapter_model.safetensors is not in the certificate"]),
        (remove_weights, ["adapter_config.json is not there", "config.json is not in the certificate"]),
        (change_score, ["the signature does not fit the certificate"]),
        (change_topic, ["the signature does not fit the certificate"]),
        (sign_with_another_key, ["names another public key than the one given"]),
    ],
)
def test_what_does_not_hold_is_named_with_exit_code_3(
    certified: Certified, spoil: Callable[[Certified], None], expected: list[str]
) -> None:
    spoil(certified)
    lines = certified.verify("--model", certified.model, code=3)
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines, strict=True)), lines


def test_a_certificate_is_the_same_however_its_json_is_written(certified: Certified) -> None:
    values = json.loads(certified.certificate.read_text())
    certified.certificate.write_text(json.dumps(dict(reversed(values.items()))))
    certified.verify("--model", certified.model)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not valid JSON"),
        ("[1]", "is no certificate"),
        ("{}", "version: Field required"),
        ('{"version": 1, "version": 1}', "a key is given twice"),
        ('{"version": NaN}', "NaN is no JSON"),
        ("\x80\x81", "is no certificate"),
    ],
)
def test_what_is_no_certificate_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    _, public = write_keys(tmp_path)
    file = tmp_path / "certificate.json"
    file.write_text(text, encoding="latin-1")
    (line,) = said("verify", file, "--public-key", public, code=2)
    assert str(file) in line and expected in line


def test_bad_files_and_keys_are_one_line_each(certified: Certified, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pem"
    whole = Ed25519PrivateKey.generate()
    secret.write_bytes(whole.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    rsa = tmp_path / "rsa.pem"
    rsa.write_bytes(generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "noise.pem").write_text("-----BEGIN PRIVATE KEY-----\nnoise\n-----END PRIVATE KEY-----\n")
    for file, expected in (
        (tmp_path / "nowhere.pem", "can't be read"),
        (tmp_path, "can't be read"),
        (tmp_path / "noise.pem", "is no private key in PEM"),
        (certified.public, "is a public key"),
        (secret, "has a password"),
        (rsa, "is no ed25519 key"),
    ):
        (line,) = said("certify", run, "--key", file, code=2)
        assert str(file) in line and expected in line
    for file, expected in (
        (tmp_path / "nowhere.pem", "can't be read"),
        (certified.certificate, "is no public key in PEM"),
        (certified.key, "is a private key: give the public one"),
    ):
        (line,) = said("verify", certified.certificate, "--public-key", file, code=2)
        assert str(file) in line and expected in line
    (line,) = certified.verify("--model", tmp_path / "nowhere", code=2)
    assert "has no files: give the model's folder" in line
    certified.change(version=2)
    assert "is no certificate: version" in certified.verify(code=2)[0]
    (line,) = said("certify", tmp_path / "nowhere", "--key", certified.key, code=2)
    assert "is not a run" in line
