"""What the tests of the real service share."""

from collections.abc import Iterator

import httpx
import pytest
from commandline import Service

QUESTION = [{"role": "user", "content": "Which owl belongs to Harry Potter?"}]


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A plain HTTP client with the service's key."""
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=120) as client:
        yield client
