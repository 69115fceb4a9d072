"""Faster rollouts for RL post-training by lossless self-drafting. Imports neither torch, vLLM nor veRL."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("efficient-rollout")
except PackageNotFoundError:  # a checkout on sys.path that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
