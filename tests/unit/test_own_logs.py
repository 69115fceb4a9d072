"""A warning of this package is seen once, also where vLLM's server has turned the root logger down."""

import subprocess
import sys

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")

# The process of veRL's server: importing veRL gives the root logger a handler, and making vLLM's application loads
# this package, which raises the level of both.
SERVER = """
import contextlib, logging
from efficient_rollout.verl_plugin.server import EfficientServer
for _ in range(2):
    with contextlib.suppress(TypeError):
        EfficientServer()
from model_hosting_container_standards import logging_config
root = logging.getLogger()
assert root.level == logging.ERROR, root.level
assert root.handlers
logging.getLogger("somebody.else").warning("unseen")
logging.getLogger("efficient_rollout.engine.x").warning("seen %d", 1)
logging.getLogger("efficient_rollout.engine.x").info("too much")
logging.getLogger("efficient_rollout.engine.x").error("seen %d", 2)
"""


def test_warnings_of_the_server_are_seen_once():
    result = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True, check=True)
    for text in ("seen 1", "seen 2"):
        assert (result.stdout + result.stderr).count(text) == 1
    assert "WARNING:" in result.stderr
    assert "efficient_rollout.engine.x: seen 1" in result.stderr
    assert "unseen" not in result.stderr
    assert "too much" not in result.stderr
