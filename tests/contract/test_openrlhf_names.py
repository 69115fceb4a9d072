"""Every name of OpenRLHF's that this package uses exists; `test_symbols.py` says that each is on the list."""

import importlib

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from checked_names import missing
from names_of_openrlhf import OF_OPENRLHF

from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - what this machine lacks


def test_everything_listed_of_openrlhf_exists():
    for name in OF_OPENRLHF:  # a package has its modules once they are imported
        importlib.import_module(name.replace(":", ".").rpartition(".")[0])
    assert missing(OF_OPENRLHF) == []
