"""API keys: read from a file or the environment, compared in constant time, never logged."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unlearn_ray.errors import ConfigError
from unlearn_ray.reading import read_text
from unlearn_ray.serving.settings import KEYS_VARIABLE

_LEAST_LENGTH = 16
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of the keys; the keys themselves are not kept."""

    digests: tuple[bytes, ...] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def __str__(self) -> str:
        """The digests in the format of UNLEARN_RAY_API_KEYS. Ray logs what it passes on to a replica: a key must not be in it."""
        return ",".join(f"sha256:{digest.hex()}" for digest in self.digests)

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of the keys. Every key is compared, each in constant time."""
        scheme, _, token = authorization.partition(" ")
        given = _digest(token.strip())
        matches = [hmac.compare_digest(given, known) for known in self.digests]
        return scheme.lower() == "bearer" and any(matches)


def read_keys(file: str | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of `file`, one per line (# begins a comment), or those in UNLEARN_RAY_API_KEYS. sha256:HEX is a key's hash.

    Raises:
        ConfigError: the file can't be read or holds no key, or a key is too short.
    """
    if file is not None:
        try:
            lines = read_text(Path(file)).splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"keys_file {file}: can't be read ({error}): write one key per line") from error
        found, source = [line.partition("#")[0].strip() for line in lines], f"keys_file {file}"
    else:
        found, source = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",")], KEYS_VARIABLE
    keys = [key for key in found if key]
    if file is not None and not keys:
        raise ConfigError(f"{source}: holds no key: write one key per line")
    for place, key in enumerate(keys, 1):
        if len(key) < _LEAST_LENGTH or any(character.isspace() for character in key):
            raise ConfigError(f"{source}: key {place} must be {_LEAST_LENGTH} characters or more, without blanks")
    hashed = [_HASHED.fullmatch(key) for key in keys]
    return Keys(
        tuple(bytes.fromhex(match[1]) if match else _digest(key) for key, match in zip(keys, hashed, strict=True))
    )


def _digest(key: str) -> bytes:
    # surrogateescape restores the environment's bytes.
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
