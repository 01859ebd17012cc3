"""API keys."""

from pathlib import Path

import pytest

from unlearn_ray.errors import ConfigError
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.service import check_host, is_loopback
from unlearn_ray.serving.settings import ServiceSettings

KEY = "sk-0123456789abcdef"


def test_keys_come_from_a_file_with_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}  # Ann\n\nsk-fedcba9876543210\n")
    keys = read_keys(str(file), {})
    assert keys.admits(f"Bearer {KEY}") and keys.admits("bearer sk-fedcba9876543210")
    assert not keys.admits(KEY) and not keys.admits("Bearer sk-") and not keys.admits("") and not keys.admits("Bearer ")
    assert KEY not in repr(keys)


def test_keys_come_from_the_environment() -> None:
    assert read_keys(None, {"UNLEARN_RAY_API_KEYS": f"{KEY}, sk-fedcba9876543210"}).admits("Bearer sk-fedcba9876543210")
    assert not read_keys(None, {})


def test_hashes_stand_for_keys() -> None:
    keys = read_keys(None, {"UNLEARN_RAY_API_KEYS": KEY})
    assert KEY not in str(keys)
    again = read_keys(None, {"UNLEARN_RAY_API_KEYS": str(keys)})
    assert again == keys and again.admits(f"Bearer {KEY}") and not again.admits(f"Bearer {keys}")


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "has blank in it here\n"])
def test_files_without_usable_keys_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match="key"):
        read_keys(str(file), {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere/keys"):
        read_keys("/nowhere/keys", {})


def test_without_keys_only_loopback_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARN_RAY_API_KEYS", raising=False)
    assert check_host("127.0.0.1", ServiceSettings()).allow_no_keys
    with pytest.raises(ConfigError, match="open to others"):
        check_host("0.0.0.0", ServiceSettings())
    monkeypatch.setenv("UNLEARN_RAY_API_KEYS", KEY)
    assert not check_host("0.0.0.0", ServiceSettings()).allow_no_keys


def test_loopback_is_known() -> None:
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
