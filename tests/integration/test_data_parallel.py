"""Engines behind one server decide alone, and each is counted."""

import asyncio
import os
import signal
import time

import engine_support
import pytest
from scripted_engine import PATTERN

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.statistics import (
    SegmentRecorder,
    call_every_engine,
    rollout_totals_by_engine,
    take_rollout_stats_behind,
)

pytestmark = [pytest.mark.engine, pytest.mark.several_cores, pytest.mark.slow]

PROMPT = [5, 7, 9, 11]
NUM_TOKENS = 41


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def loop():
    """The server's event loop, for all of the module."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def server(policy, loop):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    settings = Settings.parse(
        {"drafter": {"scheme": "unquantized"}, "controller": {"rule": "always", "max_draft_tokens": 4}}
    )
    ours = engine_args(str(policy), settings, data_parallel_size=2) | {
        "scheduler_cls": "scripted_engine.ScriptedScheduler",
        "worker_cls": "scripted_engine.FaultyWorker",
    }
    arguments = AsyncEngineArgs(
        str(policy), dtype="float32", data_parallel_size=2, **{**engine_support.ENGINE_LIMITS, **ours}
    )

    async def start():
        return AsyncLLM.from_engine_args(arguments)

    server = loop.run_until_complete(start())
    yield server
    server.shutdown()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


async def generate(server, rank, pattern, has_begun=None, **given):
    """Tokens of one response of the engine of this rank, greedy unless told; an event to be set with the first."""
    params = engine_support.sampling(max_tokens=NUM_TOKENS, extra_args={PATTERN: pattern}, **given)
    name = f"{rank}-{pattern}-{time.monotonic_ns()}"
    async for output in server.generate({"prompt_token_ids": PROMPT}, params, name, data_parallel_rank=rank):
        last = output
        if has_begun is not None:
            has_begun.set()
    return last.outputs[0].token_ids


def test_no_two_engines_answer_a_prompt_with_the_same_noise(server, loop):
    async def all_of_them():
        return await asyncio.gather(*(generate(server, rank, [0], temperature=1.0) for rank in [0, 1] * 4))

    assert len(set(map(tuple, loop.run_until_complete(all_of_them())))) == 8


def test_engines_choose_their_own_draft_lengths_and_all_are_counted(server, loop):
    async def both():
        await take_rollout_stats_behind(server)
        tokens = await asyncio.gather(generate(server, 0, [4]), generate(server, 1, [0]))
        return tokens, await call_every_engine(server, "take_rollout_stats"), await take_rollout_stats_behind(server)

    (drafted, plain), engines, rest = loop.run_until_complete(both())
    assert drafted == plain
    by_engine = [stats["num_draft_tokens"] for (stats,) in engines]
    assert by_engine[1] == 0
    # All accepted: a verify pass emits 5 tokens, the first comes from the prompt.
    assert by_engine[0] + rest.num_draft_tokens == 4 * (NUM_TOKENS - 1) // 5
    assert rest.num_engines == 2
    assert sum(stats["num_generated_tokens"] for (stats,) in engines) + rest.num_generated_tokens == 2 * NUM_TOKENS


def test_engines_are_told_apart_in_a_step_s_segments_and_on_the_metrics_page(server, loop):
    record = SegmentRecorder()

    async def both():
        await record.take(server)
        before = await rollout_totals_by_engine(server)
        await asyncio.gather(generate(server, 0, [4]), generate(server, 1, [0]))
        await record.close(server)
        return before, await record.take(server), await rollout_totals_by_engine(server)

    before, segments, after = loop.run_until_complete(both())
    assert [len(of_engine) for of_engine in segments] == [2, 2], "before the sync, and since"
    drafted = [of_engine[0]["stats"]["num_draft_tokens"] for of_engine in segments]
    assert drafted == [4 * (NUM_TOKENS - 1) // 5, 0]
    assert list(before) == list(after) == [0, 1]
    assert [after[engine].num_draft_tokens - before[engine].num_draft_tokens for engine in (0, 1)] == drafted


def test_no_engine_waits_for_another(server, loop):
    """One engine's worker stands still, and the other one drafts to the end of its response."""
    statuses = loop.run_until_complete(call_every_engine(server, "plugin_status"))
    (stopped,) = statuses[1]

    async def one():
        return await asyncio.wait_for(generate(server, 0, [4, 0, 2]), timeout=60)

    async def other():
        # Alone, so that it is in the middle of its own response when it is stopped.
        has_begun = asyncio.Event()
        waiting = asyncio.create_task(generate(server, 1, [0], has_begun))
        await has_begun.wait()
        os.kill(stopped["process_id"], signal.SIGSTOP)
        try:
            first = await one()
            assert not waiting.done()
        finally:
            os.kill(stopped["process_id"], signal.SIGCONT)
        return first, await waiting

    first, second = loop.run_until_complete(other())
    assert first == second


def test_every_engine_gets_new_weights(server, loop, policy):
    before = loop.run_until_complete(generate(server, 1, [4]))
    loop.run_until_complete(server.collective_rpc("sync_from", args=(str(policy),)))
    loop.run_until_complete(server.reset_prefix_cache())
    statuses = loop.run_until_complete(call_every_engine(server, "plugin_status"))
    assert [status["weights_version"] for (status,) in statuses] == [1, 1]
    assert loop.run_until_complete(generate(server, 1, [4])) == before
    stats = loop.run_until_complete(take_rollout_stats_behind(server))
    assert stats.num_weight_syncs == 1, "they happen side by side"
