"""Settings shared by every test: where random cases come from, and how many there are.

``ABYSSAL_TEST_PROFILE=fast`` (the default) is what ``make test`` runs; ``full`` runs the full
number of cases.
"""

import os
import signal
import zlib

import pytest
from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("ABYSSAL_TEST_PROFILE", "fast")

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# The fast profile repeats the same cases every time: a failure there is a failure for everyone.
settings.register_profile("fast", max_examples=50, derandomize=True, database=None, **_COMMON)
settings.register_profile("full", max_examples=2000, **_COMMON)
settings.load_profile(PROFILE)


def pytest_configure() -> None:
    """Take Ctrl-C, also where a shell started the tests in the background with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the full number of cases the time that it takes, on a busy machine too."""
    if PROFILE == "full":
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(7200))


@pytest.fixture
def full_profile() -> bool:
    """Whether the full number of cases was asked for."""
    return PROFILE == "full"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that depends on the test's name and parameters alone."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def generator(seed: int):
    """A torch generator seeded by the test's name."""
    import torch

    return torch.Generator().manual_seed(seed)
