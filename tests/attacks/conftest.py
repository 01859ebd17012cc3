"""A damaged model for the attacks to mend."""

from collections.abc import Iterator

import pytest
import torch
from attacked import damage

from unlearn_ray.attacks.attack import Target


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return damage(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
