"""What every test shares, and how tests are spread over two processes."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest modules first: a process takes a module at a time, in this order.

    While one trains, the other starts engines; two veRL jobs at once would wait for each other's cores.
    """
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    if item.path.stem == "test_verl_training":
        return 0
    if item.get_closest_marker("engine") is not None:
        return 1
    return 2 if item.get_closest_marker("verl") is not None else 3
