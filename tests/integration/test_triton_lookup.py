"""Draft steps that check copies of requests' own text, in vLLM's V2 runner: every token is the one that stock samples.

The drafter is the policy itself, so that every draw of its passes is what the policy draws: what is accepted shows
whether a copied row was drawn with the tokens before it, the KV and the noise of its position.
"""

import gc

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import interpreted
from engine_support import sampling
from recorded_graphs import capture_draft_steps, record_graphs
from small_policies import save_policy

from efficient_rollout.engine.statistics import take_rollout_stats
from efficient_rollout.gpu_check.stand import worker_of

VOCABULARY, LONGEST = 24, 64
# Prompts that repeat, and some that do not; the last response ends where the model's length does.
PROMPTS = [
    [5, 9, 7] * 7,
    [3] * 11,
    [(7 * place * place) % VOCABULARY for place in range(17)],
    [1],
    [(5 * place) % VOCABULARY for place in range(LONGEST - 9)],
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random policy of little entropy: its responses come to repeat themselves."""
    return save_policy(
        tmp_path_factory.mktemp("policy"), spread=0.06, head_spread=0.8, vocab_size=VOCABULARY, hidden_size=64,
        intermediate_size=128, num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip


def running(policy, lookup=None, most=6, scheme="unquantized", **options):
    """An engine, stock without `lookup`; ended behind the block."""
    drafter = None if lookup is None else {"scheme": scheme, "lookup": lookup, "group_size": 32}
    return interpreted.running(policy, drafter, most, **options)


def sampled(engine, prompts=PROMPTS, num_tokens=40):
    temperatures, longest = (0.0, 0.5, 1.0), [min(num_tokens, LONGEST - len(prompt)) for prompt in prompts]
    parameters = [
        sampling(temperature=temperatures[number % 3], seed=100 + number, max_tokens=most)
        for number, most in enumerate(longest)
    ]
    return interpreted.answers(engine, prompts, parameters)


@pytest.fixture(scope="module")
def expected(policy):
    """What stock samples."""
    with running(policy) as engine:
        answer = sampled(engine)
    gc.collect()
    return answer


class Chains:
    """Looks at every chain of a drafter that is the policy: its draws are what stock samples there.

    Attributes:
        wrong: Position of a chain's first draft, what was drawn, what stock samples; of chains that differ.
        num_right: Draws that did not.
    """

    def __init__(self, engine, texts, monkeypatch):
        self.wrong, self.num_right = [], 0
        self._texts, self._drafter = texts, worker_of(engine).self_drafter
        propose = self._drafter.propose
        monkeypatch.setattr(self._drafter, "propose", lambda *args, **kwargs: self._look(propose(*args, **kwargs)))

    def _look(self, drafts):
        if self._drafter.num_drafted:
            chains = self._drafter._widest._chains
            for request in range(len(drafts)):
                first, length = int(chains.firsts[request]), int(chains._lengths[request])
                known = chains._texts[request, : first + 1].tolist()
                for text in (text for text in self._texts if text[: first + 1] == known):
                    expected = text[first + 1 : first + 1 + length]
                    drawn = drafts[request, : len(expected)].tolist()
                    self.wrong += [] if drawn == expected else [(first, drawn, expected)]
                    self.num_right += sum(map(int.__eq__, drawn, expected))
        return drafts


def passes_a_chain(engine, chains_before=0):
    drafter = worker_of(engine).self_drafter
    stats = take_rollout_stats(engine.collective_rpc)
    assert 20 < stats.num_copies_kept < stats.num_copies
    return stats.num_draft_passes / (drafter.stopwatch.num_laps - chains_before)


def test_samples_are_those_of_stock_with_and_without_graphs(policy, expected, monkeypatch):
    with running(policy, "own") as engine:
        chains = Chains(engine, [prompt + text for prompt, text in zip(PROMPTS, expected, strict=True)], monkeypatch)
        assert sampled(engine) == expected
        passes = passes_a_chain(engine)
        num_eager, num_chains = chains.num_right, worker_of(engine).self_drafter.stopwatch.num_laps
        graphs = record_graphs(monkeypatch)
        capture_draft_steps(worker_of(engine), (1, 2, 4, 6, 8, 16, 48))
        assert graphs.host_reads == []
        assert sampled(engine) == expected
        # At first there are as many as drafts.
        assert passes_a_chain(engine, num_chains) < passes <= 6
        assert worker_of(engine).health.drafter_fault is None
        assert sum(graph.num_replays for graph in graphs.recorded) > 5
        assert chains.wrong == []
        assert min(num_eager, chains.num_right - num_eager) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "scheme", "options"),
    [
        # Prompts in chunks, a prefix cache, one tick after the other.
        (3, "int4", {"asynchronous": False, "max_num_batched_tokens": 16, "enable_prefix_caching": True}),
        # More drafts than rows.
        (12, "unquantized", {}),
    ],
)
def test_samples_are_those_of_stock_whatever_the_options(policy, expected, most, scheme, options):
    with running(policy, "own", most, scheme, **options) as engine:
        for _ in range(2):
            assert sampled(engine) == expected
        assert worker_of(engine).health.drafter_fault is None
        stats = take_rollout_stats(engine.collective_rpc)
        assert sum(stats.accepted_per_position) > 0.3 * sum(stats.drafted_per_position)
        assert stats.num_copies_kept > 0
