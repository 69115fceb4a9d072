"""Cases of a test of which some are slow."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def cases(names: Iterable[str], *, rare: Container[str]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`."""
    return [pytest.param(name, marks=pytest.mark.slow if name in rare else ()) for name in names]
