"""What an engine that could draft, and is told not to, pays per tick over stock vLLM.

    .venv/bin/python scripts/bench_plain_ticks.py --model POLICY --batches 1,32 --rounds 40

Three engines decode the same number of tokens in turns: stock vLLM with its defaults, stock vLLM without asynchronous
scheduling, and self-drafting with the rule `never`, none with a class that records. (`efficient-rollout bench rollout
--arms plain,never` compares whole rollouts, and its self-drafting engine records every tick, which costs a small policy
some.) Prints milliseconds per tick, and the median and quartiles of the ratios to the first arm in the same round.
"""

import argparse
import sys
import time
from statistics import median, quantiles
from typing import Any

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import engine_args

_NUM_TOKENS = 64


def start_engines(model: str, dtype: str, max_requests: int, *, is_compiled: bool) -> dict[str, Any]:
    """Engines by the name of their arm."""
    from vllm import LLM

    common = {
        "dtype": dtype, "enforce_eager": not is_compiled, "max_model_len": 256, "max_num_seqs": max_requests,
        "kv_cache_memory_bytes": 256 << 20, "disable_log_stats": True,
    }  # fmt: skip
    settings = Settings.parse({"controller": {"rule": "never"}})
    ours = engine_args(model, settings, dtype=dtype, enforce_eager=not is_compiled)
    arms = {"stock": {}, "stock, async_scheduling=False": {"async_scheduling": False}, "self-drafting, never": ours}
    return {name: LLM(model, **common, **arguments) for name, arguments in arms.items()}


def seconds_per_tick(engine: Any, num_requests: int) -> float:
    """Of one rollout in which every request emits `_NUM_TOKENS` tokens; the prompts' tick is one of them."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.0, max_tokens=_NUM_TOKENS, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [3 + i, 7, 9, 11, 13]} for i in range(num_requests)]
    started = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return (time.perf_counter() - started) / _NUM_TOKENS


def main() -> None:
    """Measure, and print a table per number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the policy's directory")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batches", default="1,32", help="running requests")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    batches = [int(batch) for batch in given.batches.split(",")]
    engines = start_engines(given.model, given.dtype, max(batches), is_compiled=given.compile)
    names = list(engines)
    for batch in batches:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        # The first round warms up.
        for number in range(given.rounds + 1):
            start = number % len(names)
            for name in (*names[start:], *names[:start]):
                seconds[name].append(seconds_per_tick(engines[name], batch))
        sys.stdout.write(f"\n{batch} requests, {given.rounds} rounds\n")
        for name in names:
            ours, stock = seconds[name][1:], seconds[names[0]][1:]
            low, middle, high = quantiles([mine / theirs for mine, theirs in zip(ours, stock, strict=True)], n=4)
            over = f"over stock {middle:.3f} [{low:.3f}, {high:.3f}]"
            sys.stdout.write(f"{name:32s} {median(ours) * 1e3:7.3f} ms/tick   {over}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
