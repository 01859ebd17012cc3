"""Pushing exports to the Hugging Face hub."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import MERGED
from unlearn_ray.errors import ArtifactError, InputError, gist
from unlearn_ray.runs import config_of
from unlearn_ray.serving.release import Candidate
from unlearn_ray.serving.weights import ADAPTER
from unlearn_ray.stages.card import CARD, base_of, card


def repositories(found: Sequence[Candidate], repo: str) -> list[tuple[str, Candidate, Folder]]:
    """The repository of each export: `repo` for a single model, `repo-NAME` for each of several. A merged model beside an adapter goes to
    the adapter's repository name plus `-merged`.

    Raises:
        InputError: `repo` is not a valid repository name, or a candidate is a bare adapter, which has no run to fill a card from.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if any(candidate.chain is None for candidate in found):
        raise InputError("--push-to-hub: a bare adapter has no card to fill in: give the run that made it")
    places = []
    for candidate in found:
        name = repo if len(found) == 1 else f"{repo}-{candidate.name}"
        places.append((name, candidate, candidate.weights))
        merged = candidate.weights.parent / MERGED
        if merged.names():
            places.append((f"{name}-{MERGED}", candidate, merged))
    for name, _, _ in places:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise InputError(
                f"--push-to-hub: {name!r} can't name a repository: give OWNER/NAME ({gist(error)})"
            ) from error
    return places


def push(repo: str, candidate: Candidate, export: Folder, *, is_private: bool = False, api: Any = None) -> str:
    """Upload an export with its completed card; returns the repository's address.

    The files are uploaded as they are, except the card and an adapter's config: there the base model's name replaces the path of a
    local folder.

    Args:
        api: a `huggingface_hub.HfApi`; None: one with the user's endpoint and token.

    Raises:
        ArtifactError: the export can't be read, or the hub can't be reached or refuses it.
    """
    from huggingface_hub import HfApi

    assert candidate.chain is not None
    api = api or HfApi(library_name="unlearn-ray")
    is_adapter, config = export.exists(ADAPTER), config_of(candidate.chain.run)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        _stage(export, staged)
        if is_adapter:
            settings = json.loads(export.read_text(ADAPTER)) | {"base_model_name_or_path": base_of(config)[0]}
            _replace(staged / ADAPTER, json.dumps(settings, indent=2, sort_keys=True))
        _replace(staged / CARD, card(candidate.chain.home, config, is_adapter=is_adapter))
        try:
            address = api.create_repo(repo, private=is_private or None, exist_ok=True)
            api.upload_folder(
                repo_id=address.repo_id, folder_path=staged, commit_message=f"{candidate.name}, by unlearn-ray"
            )
        except Exception as error:  # many classes: those of the HTTP client change between versions
            raise ArtifactError(
                f"{repo} can't be pushed to the hub ({gist(error)}): log in with hf auth login, or set HF_TOKEN to a token that may write there"
            ) from error
    return str(address)


def _stage(export: Folder, staged: Path) -> None:
    """Put the files of an export into a local folder. Weights on a local disk are linked, because they are large."""
    try:
        if not export.is_local:
            fs.copy_files(export.path, str(staged), source_filesystem=export.filesystem)
            return
        for file in export.local.rglob("*"):
            target = staged / file.relative_to(export.local)
            if file.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif file.suffix == ".safetensors":
                target.symlink_to(file)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    except OSError as error:
        raise ArtifactError(f"{export} can't be read: {gist(error)}") from error


def _replace(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")
