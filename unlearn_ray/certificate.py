"""`certificate.json`: which weights were unlearned into which, with what data and how, and what was measured; signed with a user's ed25519 key.

version      of this schema
issued_at    when it was signed
run, model   names: of the run, and of the model in it
topics       what was to be forgotten
base         its name, and the SHA-256 of each of its files
unlearned    adapter or model, and the SHA-256 of each of its files; the card (README.md) is not among them; of an adapter that was also exported
             merged into the model, the files of that in `merged`
data         table of training rows -> SHA-256 of its rows, as JSON with sorted keys, a line each
training     what the training was told: objective, retain term, weights, steps, rates, seed
code         version and revision of this package, versions of libraries
report       SHA-256 of report.json
scores       recall (the headline's metric), verdict, model -> group -> metric -> figure, shares kept, utility, notes
attacks      figures of the attacks that were done
signature    algorithm, public key and signature, both in base64: of all the rest, as JSON with sorted keys, without spaces, in UTF-8
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import MERGED
from unlearn_ray.errors import ArtifactError, InputError, gist
from unlearn_ray.evals.attacked import AttackFigure, read_attacks
from unlearn_ray.evals.report import REPORT, Metric, Report
from unlearn_ray.plan import identity_of
from unlearn_ray.runs import config_of, evaluated, unevaluated
from unlearn_ray.stages.card import EXPORT, base_of
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.train.modelfiles import cached_file

FILE = "certificate.json"
VERSION = 1
_DATA = ("forget", "retain", "contrasts")
_NOT_WEIGHTS = ("README.md",)  # the card, which an evaluation completes
_ADAPTER = "adapter_config.json"
_MAX_BYTES = 64 * 2**20  # of a certificate


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Files(_Strict):
    """A model's files."""

    name: str
    files: dict[str, str]  # path in its folder -> SHA-256


class Unlearned(_Strict):
    kind: Literal["adapter", "model"]
    files: dict[str, str]
    merged: dict[str, str] = {}


class Code(_Strict):
    package_version: str
    git_revision: str
    libraries: dict[str, str]


class Figure(_Strict):
    """A figure of the report; None where it was no number."""

    value: float | None
    interval: tuple[float | None, float | None]
    num: int
    doubts: list[str] = []


Figures = dict[str, dict[str, dict[str, Figure]]]  # model -> group -> metric


class Scores(_Strict):
    recall: str
    forgetting: str  # verdict
    models: Figures
    kept: Figures
    utility: dict[str, float]
    notes: list[str]


class Signature(_Strict):
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str
    value: str


class Certificate(_Strict):
    """The fields are described above."""

    version: Literal[1]
    issued_at: str
    run: str
    model: str
    topics: list[str]
    base: Files
    unlearned: Unlearned
    data: dict[str, str]
    training: dict[str, Any]
    code: Code
    report: str
    scores: Scores
    attacks: list[dict[str, Any]]
    signature: Signature


def certify(folder: Folder, key: Ed25519PrivateKey) -> list[Folder]:
    """Write the certificate of each evaluated model of a run; returns the models' folders.

    Raises:
        ArtifactError: a model or topic is not evaluated, the base model is not the one that was trained, or what a certificate is of can't be read.
    """
    config = config_of(folder)
    homes = [each.parent for each in evaluated(folder)]
    if not homes:
        raise ArtifactError(f"{folder} is unfinished: finish it with unlearn-ray run CONFIG")
    if lacking := unevaluated(folder):
        said = "; ".join(f"{topic} was not evaluated ({reason})" for topic, reason in lacking.items())
        raise ArtifactError(
            f"{folder}: {said}: finish it with unlearn-ray run CONFIG, or take the topic out of its config"
        )
    base = _base(config)
    for home in homes:
        unsigned = _certificate(home, config, base)
        home.write_text(FILE, json.dumps(signed(unsigned, key), indent=1, ensure_ascii=False, allow_nan=False))
    return homes


def signed(values: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The values, with their signature."""
    public = key.public_key().public_bytes_raw()
    signature = {
        "algorithm": "ed25519",
        "public_key": base64.b64encode(public).decode(),
        "value": base64.b64encode(key.sign(_canonical(values))).decode(),
    }
    return {**values, "signature": signature}


def _certificate(home: Folder, config: RunConfig, base: Files) -> dict[str, Any]:
    finetune, evaluation = (finished_manifest(home / name) for name in ("finetune", "evaluate"))
    report, model = Report.load(home / "evaluate"), home / "finetune" / EXPORT
    files = hashes_of(model)
    if not files:
        raise ArtifactError(f"{model} is not there: rerun with --from finetune")
    identity = identity_of(config)
    for manifest in (finetune, evaluation):
        if manifest.config["model"] != identity:
            raise ArtifactError(
                f"{config.model} is not the model that {home} was made from: its files or chat format changed since {manifest.stage}; restore them, or rerun"
            )
    return {
        "version": VERSION,
        "issued_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": report.run,
        "model": home.name,
        "topics": report.topics,
        "base": base.model_dump(),
        "unlearned": {
            "kind": "adapter" if _ADAPTER in files else "model",
            "files": files,
            "merged": hashes_of(home / "finetune" / MERGED),
        },
        "data": {name: digest for name in _DATA if (digest := _digest_of_rows(home / "mixture" / name))},
        "training": _training(finetune),
        "code": Code.model_validate(evaluation, from_attributes=True).model_dump(),
        "report": hashlib.sha256((home / "evaluate").read_text(REPORT).encode()).hexdigest(),
        "scores": _scores(report).model_dump(),
        "attacks": [_of_attack(each) for each in read_attacks(home / "evaluate")],
    }


def _base(config: RunConfig) -> Files:
    """
    Raises:
        ArtifactError: its files are not on this machine.
    """
    found = cached_file(config.model_path, "config.json")
    files = hashes_of(Folder(found.parent)) if found is not None else {}
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise ArtifactError(f"the weights of {config.model} are not on this machine: certify where the run was made")
    return Files(name=base_of(config)[0], files=files)


def hashes_of(folder: Folder) -> dict[str, str]:
    """SHA-256 of a model's files by their paths in its folder: all but its card and hidden ones.

    Raises:
        ArtifactError: one can't be read.
    """
    filesystem, home = folder.filesystem, folder.path
    try:
        infos = filesystem.get_file_info(fs.FileSelector(home, allow_not_found=True, recursive=True))
        names = sorted(info.path[len(home) :].lstrip("/") for info in infos if info.type == fs.FileType.File)
        return {name: _digest(folder, name) for name in names if _is_of_model(name)}
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder} can't be read: {gist(error)}") from error


def _is_of_model(name: str) -> bool:
    return name not in _NOT_WEIGHTS and not any(part.startswith(".") for part in name.split("/"))


def _digest(folder: Folder, name: str) -> str:
    found = hashlib.sha256()
    with folder.opened(name) as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _digest_of_rows(folder: Folder) -> str:
    """Of what the rows say, in whatever files they are; "" where there are none."""
    found, is_there = hashlib.sha256(), False
    for row in folder.read_rows():
        is_there = True
        found.update(_canonical(row) + b"\n")
    return found.hexdigest() if is_there else ""


def _training(finetune: Manifest) -> dict[str, Any]:
    exported = finetune.details.get("training", {}).get("exported_step")
    return finetune.config | ({} if exported is None else {"exported_step": exported})


def _scores(report: Report) -> Scores:
    def figures(models: Mapping[Any, Mapping[Any, Mapping[str, Metric]]]) -> Figures:
        return {
            model: {group: {name: _figure(metric) for name, metric in metrics.items()} for group, metrics in of.items()}
            for model, of in models.items()
        }

    return Scores(
        recall=report.recall,
        forgetting=report.forgetting.verdict,
        models=figures(report.models),
        kept=figures(report.retention),
        utility={str(name): value for name, value in report.utility.items()},
        notes=report.notes,
    )


def _figure(metric: Metric) -> Figure:
    low, high = metric.interval
    return Figure(
        value=_number(metric.agg_value),
        interval=(_number(low), _number(high)),
        num=metric.num,
        doubts=[str(doubt) for doubt in metric.doubts],
    )


def _of_attack(figure: AttackFigure) -> dict[str, Any]:
    values = figure.model_dump(mode="json")
    return {**values, "value": _number(figure.value), "interval": [_number(bound) for bound in figure.interval]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_certificate(file: Path) -> dict[str, Any]:
    """What a certificate says, exactly as it stands there.

    Raises:
        InputError: it can't be read, or is no certificate.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} is no certificate: it has more than {_MAX_BYTES >> 20} MiB")
        values = json.loads(file.read_bytes(), object_pairs_hook=_once_each, parse_constant=_refuse)
        Certificate.model_validate_json(json.dumps(values))
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file} is no certificate: {where + ': ' if where else ''}{first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no certificate: it is not valid JSON ({gist(error)})") from error
    assert isinstance(values, dict)
    return values


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice, another reader might take the other value than the one that is checked here."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def signature_faults(values: Mapping[str, Any], key: Ed25519PublicKey) -> Iterator[str]:
    """What is wrong with a certificate's signature."""
    signature = values["signature"]
    if signature["public_key"] != base64.b64encode(key.public_bytes_raw()).decode():
        yield "the certificate names another public key than the one given: it was signed by somebody else"
        return
    try:
        value = base64.b64decode(signature["value"], validate=True)
        key.verify(value, _canonical({name: each for name, each in values.items() if name != "signature"}))
    except (InvalidSignature, binascii.Error, ValueError):
        yield "the signature does not fit the certificate: it was changed after it was signed"


def files_of(values: Mapping[str, Any], folder: Folder) -> Mapping[str, str]:
    """The files that a certificate names for a folder of the unlearned model: of the merged one, if it was exported and this is no adapter."""
    unlearned: Mapping[str, Any] = values["unlearned"]
    merged: Mapping[str, str] = unlearned.get("merged") or {}
    return merged if merged and not folder.exists(_ADAPTER) else unlearned["files"]


def weights_faults(files: Mapping[str, str], folder: Folder) -> Iterator[str]:
    """Where a model's folder differs from the files that a certificate names.

    Raises:
        InputError: there is no such folder, or it is empty.
        ArtifactError: a file can't be read.
    """
    found = hashes_of(folder)
    if not found:
        raise InputError(f"{folder} has no files: give the model's folder")
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            yield f"{folder}/{name} is not there"
        elif name not in files:
            yield f"{folder}/{name} is not in the certificate"
        elif found[name] != files[name]:
            yield f"{folder}/{name} is not the file of the certificate: its SHA-256 differs"


def read_private_key(file: Path) -> Ed25519PrivateKey:
    """
    Raises:
        InputError: it is no ed25519 key, in PEM or as OpenSSH writes it, or has a password.
    """
    data = _bytes_of(file)
    is_ssh = b"OPENSSH PRIVATE KEY" in data
    try:
        load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
        key = load(data, password=None)
    except TypeError as error:
        raise InputError(f"{file} has a password: give a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"PUBLIC KEY" in data or data.startswith(b"ssh-"):
            raise InputError(f"{file} is a public key: signing needs the private one") from error
        hint = (
            "has a password: give a key without one" if b"ENCRYPTED" in data or is_ssh else "is no private key in PEM"
        )
        raise InputError(f"{file} {hint} (openssl genpkey -algorithm ed25519 -out key.pem makes one)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{file} is no ed25519 key: openssl genpkey -algorithm ed25519 -out key.pem makes one")
    return key


def read_public_key(file: Path) -> Ed25519PublicKey:
    """
    Raises:
        InputError: it is no public ed25519 key, in PEM or as OpenSSH writes it.
    """
    data = _bytes_of(file)
    if b"PRIVATE KEY" in data:
        raise InputError(
            f"{file} is a private key: give the public one (openssl pkey -in key.pem -pubout -out public.pem)"
        )
    try:
        load = serialization.load_ssh_public_key if data.startswith(b"ssh-") else serialization.load_pem_public_key
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{file} is no public key in PEM (openssl pkey -in key.pem -pubout -out public.pem makes one)"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{file} is no ed25519 key: certificates are signed with such")
    return key


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}") from error
