"""What every test shares, and how tests are spread over two processes."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each module to one process, whole veRL jobs all to the same, longest first.

    An engine is started once for a module. Two veRL jobs at once wait for each other's cores.
    """
    for item in items:
        runs_job = item.get_closest_marker("verl") is not None and item.path.stem != "test_verl_bad_input"
        item.add_marker(pytest.mark.xdist_group("verl" if runs_job else item.nodeid.partition("::")[0]))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Whole veRL jobs, then what starts engines or processes, then the rest; otherwise in the order of the files."""
    if item.get_closest_marker("verl") is not None:
        return 0 if item.path.stem != "test_verl_bad_input" else 1
    return 1 if item.get_closest_marker("engine") is not None else 2
