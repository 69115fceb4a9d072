"""Engine after engine in one process, over tiny policies of many architectures: a child of test_architectures.py.

Usage: python architecture_engines.py stock|drafting common|rare FOLDER. A line of JSON per arm, as it comes, to
FOLDER/MODE.jsonl; policies are FOLDER/ARCHITECTURE. An engine costs seconds, one with its own processes twenty.
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# vLLM reads these when it is imported; the process is this test's own.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"

import engine_support
from architecture_cases import ARCHITECTURES, ARMS, ENGINES, RARE, WITH_WINDOWS
from vllm import SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.vllm_plugin.executor import DraftsRideAlong
from efficient_rollout.vllm_plugin.stats import take_rollout_stats
from efficient_rollout.vllm_plugin.tapped_target import PackedMethod

LIMITS = {
    "max_model_len": 384,
    "block_size": 32,
    "max_num_seqs": 8,
    # Fewer than most prompts have: they are computed in chunks, beside requests that decode.
    "max_num_batched_tokens": 64,
    "kv_cache_memory_bytes": 64 << 20,
}
PROMPTS = [[3 + (7 * i * (j + 1) + 11 * j + i * i % 13) % 120 for i in range(n)] for j, n in enumerate(
    (5, 17, 33, 90, 150, 200, 260, 300)
)]  # fmt: skip
MAX_TOKENS = 32
CONTROLLER = {"rule": "always", "max_draft_tokens": 4}
# The native kernel attends in layers without a window, vLLM's own in those with one.
KERNEL = "auto" if native_missing() else "native"


class InProcessExecutor(DraftsRideAlong, UniProcExecutor):
    """The product's executor without its process."""


def generate(engine: Any, temperature: float) -> list[dict[str, Any]]:
    """Tokens, and the gap between the two best log-probabilities before each of them."""
    params = SamplingParams(
        temperature=temperature, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, logprobs=2
    )
    completions = [outputs[0] for outputs in engine_support.generate(engine, PROMPTS, params)]
    # The statistics of the last tick come with the step behind it, which an engine in a process of its own takes.
    engine.llm_engine.engine_core.get_output()
    gaps = [
        [max(best) - sorted(best)[-2] for best in ([e.logprob for e in entry.values()] for entry in c.logprobs)]
        for c in completions
    ]
    return [{"tokens": list(c.token_ids), "gaps": gap} for c, gap in zip(completions, gaps, strict=True)]


def packed_layers(worker: Any) -> dict[str, tuple[list[int], list[int] | None, int]]:
    """By path, the shape of each linear layer and output head of the policy, and of what the drafter has there.

    The last number is the same where two share a packed layer.
    """
    drafter, facts = worker.self_drafter.model, {}
    for path, layer in worker.model_runner.get_model().named_modules():
        if isinstance(layer, LinearBase):
            shape = [layer.output_size, layer.input_size]
        elif isinstance(layer, ParallelLMHead):
            shape = [layer.num_embeddings_padded, layer.embedding_dim]
        else:
            continue
        method = drafter.get_submodule(path).quant_method
        packed = method._packed if isinstance(method, PackedMethod) else None
        facts[path] = (shape, packed and [packed.out_features, packed.in_features], id(packed))
    return facts


def attention_groups(worker: Any) -> list[tuple[int, bool]]:
    """The KV cache group of each group of the drafter's attention layers, and whether these have a window."""
    return [(group.cache_group, group.has_own_window) for group in worker.self_drafter.attention.groups]


def stock(folder: Path, name: str) -> dict[str, Any]:
    """Greedy completions without a trace of this package."""
    engine = engine_support.start(folder / name, None, **LIMITS, **ENGINES.get(name, {}))
    completions = generate(engine, 0.0)
    engine_support.stop(engine)
    return {"greedy": completions}


def drafting(folder: Path, arm: str) -> dict[str, Any]:
    """Greedy completions, sampled ones, greedy ones again where a window is; and the drafts of each."""
    name, drafter, arguments = ARMS[arm]
    settings = {"verify_kernel": KERNEL, "drafter": drafter, "controller": CONTROLLER}
    try:
        engine = engine_support.start(
            folder / name, settings, distributed_executor_backend=InProcessExecutor, **LIMITS, **arguments
        )
    except EfficientRolloutError as error:
        return {"refused": str(error)}
    result: dict[str, Any] = {"drafts": []}
    take_rollout_stats(engine.collective_rpc)
    rollouts = [("greedy", 0.0), ("sampled", 1.0)]
    if name in WITH_WINDOWS:
        # On a warm cache, in which windows have given blocks back.
        rollouts.append(("greedy_again", 0.0))
    for key, temperature in rollouts:
        result[key] = generate(engine, temperature)
        stats = take_rollout_stats(engine.collective_rpc)
        result["drafts"].append([stats.num_accepted_tokens, stats.num_draft_tokens, stats.num_drafter_faults])
    result["packed"] = engine.collective_rpc(packed_layers)[0]
    result["attention"] = engine.collective_rpc(attention_groups)[0]
    engine_support.stop(engine)
    return result


if __name__ == "__main__":
    which, how_often, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    run, every = (stock, ARCHITECTURES) if which == "stock" else (drafting, ARMS)
    arms = [arm for arm in every if (arm in RARE) == (how_often == "rare")]
    with (folder / f"{which}.jsonl").open("w") as file:
        for arm in arms:
            started = time.perf_counter()
            try:
                row = run(folder, arm)
            except Exception:  # noqa: BLE001 - one arm's fault is not another's
                row = {"error": traceback.format_exc()}
            # vLLM freezes what is on the heap when an engine starts.
            gc.unfreeze()
            gc.collect()
            cleanup_dist_env_and_memory()
            file.write(json.dumps({"arm": arm, "seconds": time.perf_counter() - started, **row}) + "\n")
            file.flush()
