"""`unlearn-ray forget`: writes the YAML file of a run from the names of its topics. All values are checked before anything is written."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unlearn_ray.config import RunConfig, apply_override, parse
from unlearn_ray.errors import ConfigError
from unlearn_ray.reading import dump_yaml, fault_of, load_yaml, read_text, shown
from unlearn_ray.rows import slug_of

# The form of a config key before `=`. `E=mc2` and `x = y` are topics.
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")
_HEAD = "# Written by `unlearn-ray forget`. Run it again, as it is or edited: unlearn-ray run {name}\n"


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run's YAML file in the working directory, and its content."""

    path: Path
    text: str
    config: RunConfig
    is_there: bool  # whether it exists with the same values

    def write(self) -> None:
        """Write the file, unless it exists.

        Raises:
            ConfigError: it can't be written, or another process wrote it meanwhile.
        """
        if self.is_there:
            return
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(self.text)
        except OSError as error:
            raise ConfigError(f"{self.path} can't be written: {error.strerror or error}") from error


def compose(arguments: Sequence[str], model: str | None, kind: str, output: str | None) -> RunFile:
    """The file of a run that forgets these topics.

    Args:
        arguments: names of topics, and overrides, which go into the file.
        kind: the kind of every topic.
        output: the parent of the run's folder. None: the default.

    Raises:
        ConfigError: a value can't be used, or a file of that name holds another run.
    """
    topics = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    if not topics:
        raise ConfigError('no topic is named: write what to forget, such as unlearn-ray forget "Dune" --model MODEL')
    if model is None:
        raise ConfigError(
            "--model is missing: give a model's folder, or its name on the Hugging Face hub, such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    for given in (*topics, model, kind, output or ""):
        if fault := fault_of(given):
            raise ConfigError(f"{shown(given)} {fault}")
    values: dict[str, Any] = {"name": slug_of(" ".join(topics)), "model": model}
    if output is not None:
        values["output"] = output
    values["topics"] = [{"name": topic, "kind": kind} for topic in topics]
    for argument in arguments:
        if _OVERRIDE.match(argument):
            apply_override(values, argument)
    config = parse(values, source="forget", base=Path.cwd())
    path = Path(f"{config.name}.yaml")
    text = _HEAD.format(name=path) + dump_yaml(values)
    assert load_yaml(text) == values, "the written file must give the same values when it is read"
    return RunFile(path, text, config, _is_there(path, values))


def _is_there(path: Path, values: dict[str, Any]) -> bool:
    """Whether a file with these values exists.

    Raises:
        ConfigError: the file has other values, or can't be written.
    """
    if not os.path.lexists(path):
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{path} can't be written: go to a folder that is yours to write in")
        return False
    try:
        found = load_yaml(read_text(path))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if found != values:
        raise ConfigError(
            f"{path} exists and holds something else: run that one with unlearn-ray run {path}, move it away, or give this run another name, as in name={path.stem}-2"
        )
    return True
