"""Say in an engine's configuration what its compiled graphs were made from, so that vLLM loads no other.

vLLM keeps compiled graphs on disk under a hash of the configuration, and uses one that it finds there without a guard.
Of this package's engines the hash knows the settings, but neither this package's code nor what its code decided for
this machine and this policy.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig

import efficient_rollout
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.provenance import cpu_flags

GRAPH_KEY = "efficient_rollout_graph"


def name_policy_graph(config: VllmConfig, *, native_products: bool) -> None:
    """Put what the policy's graph depends on into the engine's configuration, before the policy is built.

    That is this package's code, this processor's instruction sets, and whose products the graph calls, which
    `verify_kernel: auto` leaves to the machine.
    """
    config.additional_config = with_graph_of(
        config, _code_digest(), sorted(cpu_flags()), torch.backends.cpu.get_cpu_capability(), native_products
    )


def with_graph_of(config: VllmConfig, *facts: Any) -> dict[str, Any]:
    """Return the config's `additional_config`, with a digest of facts of JSON types, and of those it has already."""
    known = [config.additional_config.get(GRAPH_KEY), *facts]
    return {**config.additional_config, GRAPH_KEY: hashlib.sha256(json.dumps(known).encode()).hexdigest()}


def packed_facts(packed: PackedWeights) -> list[Any]:
    """Return what a drafter's graph has of its packed layers: their names and shapes, and never a weight."""
    return [[name, layer.out_features, layer.in_features] for name, layer in packed.layers.items()]


@cache
def _code_digest() -> str:
    """Return a digest of every module of this package: on which a graph depends, not even the tracer knows."""
    root = Path(efficient_rollout.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
