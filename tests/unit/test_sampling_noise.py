"""Noise of requests and positions, and the draws that it decides."""

import itertools

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("torch")

import torch

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.sampling.noise import (
    CountedNoise,
    GeneratorNoise,
    TrajectorySeeds,
    draw,
    gumbel_draw,
    stream_key,
)

needs_kernel = pytest.mark.skipif(native_missing() is not None, reason="the native kernels need a CPU with AVX2")
FALSE_ALARM_RATE = 1e-4
PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.0099, 0.0001])


def philox(counter, key):
    """Philox4x32-10 as its authors define it (Salmon et al., SC 2011): words uint32 [4, ...]."""
    x = [np.asarray(word, dtype=np.uint64) for word in counter]
    key0, key1 = (np.uint64(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product0, product1 = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [
            (product1 >> np.uint64(32)) ^ x[1] ^ key0,
            product1 & low,
            (product0 >> np.uint64(32)) ^ x[3] ^ key1,
            product0 & low,
        ]
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & low, (key1 + np.uint64(0xBB67AE85)) & low
    return np.stack(x)


def reference_scores(logits, key, position):
    """What the kernel takes the largest of, in float64."""
    token = np.arange(len(logits))
    number = token // 32 * 8 + token % 8
    counter = (number, np.zeros_like(number), position & 0xFFFFFFFF, position >> 32)
    words = philox(counter, (key & 0xFFFFFFFF, key >> 32))
    word = words[token % 32 // 8, token]
    uniform = ((word >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-31
    return np.asarray(logits, dtype=np.float64) - np.log(-np.log1p(-uniform))


def test_the_reference_gives_the_authors_own_numbers():
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((ones,) * 4, (ones,) * 2).tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@needs_kernel
@pytest.mark.parametrize("vocab_size", [1, 7, 8, 31, 33, 128, 8191, 8193, 40000])
def test_the_kernel_takes_the_references_largest(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(6, vocab_size, generator=generator) * 3
    keys = [(stream_key("test", row), position) for row, position in enumerate((0, 1, 2, 77, 1 << 20, 1 << 40))]
    for row, token in enumerate(gumbel_draw(logits, keys).tolist()):
        scores = reference_scores(logits[row].numpy(), *keys[row])
        assert scores[token] == pytest.approx(scores.max(), abs=1e-5)


@needs_kernel
@pytest.mark.parametrize("key", ["one-request", "a-request-each"])
def test_draws_follow_the_distribution(key):
    num_draws = 200_000
    keys = [(stream_key(key), i) if key == "one-request" else (stream_key(key, i), 0) for i in range(num_draws)]
    counts = torch.bincount(gumbel_draw(PROBABILITIES.log().expand(num_draws, -1), keys), minlength=6)
    assert stats.chisquare(counts.numpy(), PROBABILITIES.double().numpy() * num_draws).pvalue > FALSE_ALARM_RATE


@needs_kernel
def test_neighbouring_positions_and_requests_are_independent():
    num_draws = 100_000
    logits = torch.zeros(num_draws, 4)
    for other in (lambda i: (1, i + 1), lambda i: (2, i)):
        pairs = 4 * gumbel_draw(logits, [(1, i) for i in range(num_draws)])
        pairs += gumbel_draw(logits, [other(i) for i in range(num_draws)])
        assert stats.chisquare(torch.bincount(pairs, minlength=16).numpy()).pvalue > FALSE_ALARM_RATE


@needs_kernel
def test_a_rare_token_is_as_rare_as_it_should_be():
    # Noise of too few bits near 0 would never, or far too often, let such a token win.
    rare, num_rows, vocab_size = 2e-8, 2000, 1 << 17
    logits = torch.full((num_rows, vocab_size), float(np.log(rare)))
    logits[:, 0] = float(np.log1p(-rare * (vocab_size - 1)))
    won = int((gumbel_draw(logits, [(5, i) for i in range(num_rows)]) != 0).sum())
    expected = num_rows * rare * (vocab_size - 1)
    assert stats.poisson.cdf(won, expected) > FALSE_ALARM_RATE
    assert stats.poisson.sf(won - 1, expected) > FALSE_ALARM_RATE


@needs_kernel
def test_a_row_is_drawn_alike_alone_and_among_others():
    logits = torch.randn(32, 20_000, generator=torch.Generator().manual_seed(0))
    keys = [(stream_key(row), row) for row in range(32)]
    together = gumbel_draw(logits, keys).tolist()
    assert [gumbel_draw(logits[row : row + 1], keys[row : row + 1]).item() for row in range(32)] == together


@needs_kernel
def test_what_is_not_allowed_is_not_drawn():
    logits = torch.full((4096, 300), -torch.inf)
    logits[:, 299] = 0.0
    logits[:, 5] = -30.0
    tokens = gumbel_draw(logits, [(3, i) for i in range(4096)])
    assert set(tokens.tolist()) == {299}
    logits[:, 299] = -torch.inf
    assert set(gumbel_draw(logits, [(3, i) for i in range(4096)]).tolist()) == {5}


@needs_kernel
@pytest.mark.parametrize("num_keys", [0, 2, 4])
def test_a_key_for_each_row(num_keys):
    with pytest.raises(ValueError, match=f"3 rows of logits, and {num_keys} streams"):
        draw(torch.zeros(3, 5), [CountedNoise(1)] * num_keys, [0] * num_keys)


def test_a_generators_noise_is_drawn_once_in_order_whoever_asks():
    stream = GeneratorNoise(torch.Generator().manual_seed(9), torch.float32)
    third = stream.row(2, 10).clone()
    first = stream.row(0, 10).clone()
    expected = torch.Generator().manual_seed(9)
    rows = [torch.empty(10).exponential_(generator=expected) for _ in range(4)]
    assert torch.equal(first, rows[0])
    assert torch.equal(third, rows[2])
    stream.advance(2)
    assert torch.equal(stream.row(0, 10), rows[2])
    assert torch.equal(stream.row(1, 10), rows[3])
    with pytest.raises(ValueError, match="3 tokens were sampled, with noise of 2"):
        stream.advance(3)


@needs_kernel
def test_rows_of_both_kinds_beside_each_other():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))

    def streams():
        generators = [GeneratorNoise(torch.Generator().manual_seed(seed), torch.float32) for seed in (1, 2)]
        return [generators[0], CountedNoise(11), CountedNoise(12), generators[1]]

    together = draw(logits, streams(), [0, 3, 0, 1]).tolist()
    alone = [
        draw(logits[row : row + 1], [streams()[row]], [position]).item() for row, position in enumerate((0, 3, 0, 1))
    ]
    assert together == alone
    counted = CountedNoise(11)
    counted.advance(3)
    assert draw(logits[1:2], [counted], [0]).item() == together[1]


def test_every_row_has_a_stream_of_its_own():
    for streams in ([CountedNoise(1)], [GeneratorNoise(torch.Generator().manual_seed(0), torch.float32)]):
        with pytest.raises(ValueError, match="2 rows of logits, and 1 streams"):
            draw(torch.zeros(2, 5), streams, [0])


def test_names_of_streams_do_not_run_together():
    assert stream_key("a", 11) != stream_key("a", 1, 1)
    assert stream_key("request", 0, 1) == stream_key("request", 0, 1) < 1 << 64


TURNS = ([5, 6, 7], [5, 6, 8], [5, 6, 7, 9])  # two as long as one another


def seeds(base: int, asked: list[tuple[list[int], int | None]]) -> list[int]:
    trajectory = TrajectorySeeds(base)
    return [trajectory.next_seed(prompt, own) for prompt, own in asked]


def test_no_two_requests_of_a_trajectory_share_a_seed_and_no_two_trajectories():
    # The same turn asked three times over, with a seed of the loop's own and without.
    asked = [(turn, own) for own in (None, 42) for turn in TURNS for _ in range(3)]
    found = seeds(1, asked) + seeds(2, asked)
    assert len(set(found)) == len(found) == 36
    assert all(0 <= seed < 2**63 for seed in found)


def test_branches_have_their_seeds_whichever_comes_first():
    wanted = sorted(seeds(1, [(turn, None) for turn in (*TURNS, *TURNS)]))
    for order in itertools.permutations((*TURNS, *TURNS)):
        assert sorted(seeds(1, [(turn, None) for turn in order])) == wanted
