"""What every test shares, and how tests are spread over processes.

Two processes with a core each run all but tests marked `several_cores`, whose engines have workers with a core each.
Those follow, in one process with every core: `pytest --several-cores`. A single process without that option runs all.
Tests of the OpenRLHF plugin need OpenRLHF, which has an environment of its own, and are skipped in any other: `pytest
--openrlhf` there runs these alone. So it is with the tests of the CUDA path, Triton and `pytest --triton`.
"""

import importlib
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Three options more."""
    parser.addoption("--several-cores", action="store_true", help="only tests that need several cores; no -n beside it")
    parser.addoption("--openrlhf", action="store_true", help="only tests of the OpenRLHF plugin")
    parser.addoption("--triton", action="store_true", help="only tests of the CUDA path, in Triton's interpreter")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes cores of its own, and what it starts with it.

    Threads that wait for each other by spinning, as OpenMP's do, stand still for long where they share a core.
    """
    if config.getoption("--triton"):
        importlib.import_module("interpreter")
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        index, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        os.sched_setaffinity(0, cores[index % len(cores) :: count])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest modules first: a process takes a module at a time, in this order.

    While one trains, the other starts engines.
    """
    items.sort(key=_place)
    for name in ("openrlhf", "triton"):
        if config.getoption(f"--{name}"):
            _keep(config, items, [item for item in items if item.path.stem.startswith(f"test_{name}")])
    is_alone, takes_only_several = not hasattr(config, "workerinput"), config.getoption("--several-cores")
    if is_alone and not takes_only_several:
        return
    _keep(config, items, [item for item in items if _needs_several_cores(item) == takes_only_several])


def _needs_several_cores(item: pytest.Item) -> bool:
    return item.get_closest_marker("several_cores") is not None


def _keep(config: pytest.Config, items: list[pytest.Item], kept: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


# Minutes each.
_LONGEST = ("test_verl_training", "test_verl_recipes", "test_verl_nodes")


def _place(item: pytest.Item) -> int:
    if item.path.stem in _LONGEST:
        return 0
    if item.get_closest_marker("engine") is not None:
        return 1
    return 2 if item.get_closest_marker("verl") is not None else 3
