"""Names of models: `base`, an alias `harry-potter`, a version `harry-potter@3`, and a topic's `harry-potter:guarded`."""

import re
from dataclasses import dataclass

BASE = "base"
GUARDED = "guarded"
RESERVED = (BASE, GUARDED, "events")  # the registry keeps its events in a folder of that name
_NAME = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,119})(?:@(?P<version>[1-9][0-9]{0,8}))?(?::(?P<mode>guarded))?")


@dataclass(frozen=True, slots=True)
class ModelName:
    """The parts of a name as a client writes it."""

    name: str
    version: int | None = None  # None: what the alias points to
    is_guarded: bool = False

    def __str__(self) -> str:
        return versioned(self.name, self.version) + (f":{GUARDED}" if self.is_guarded else "")


def versioned(name: str, version: int | None) -> str:
    return name if version is None else f"{name}@{version}"


def full_route(release_id: str) -> str:
    """The path prefix of a full fine-tune's app."""
    return f"/full/{release_id}"


def parse_name(text: str) -> ModelName | None:
    """The parts of a model's name. None if `text` is not a valid name."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    version = match["version"]
    return ModelName(match["name"], int(version) if version else None, match["mode"] is not None)
