"""What the host knows of chains on a device: how many passes they need, and where they cannot look copies up."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from efficient_rollout.engine.gpu.chain import KeptCopies, PlainSteps, steps_of
from efficient_rollout.errors import UnsupportedModelError


def speculator(**other):
    options = {"max_num_reqs": 2, "num_speculative_steps": 4, "max_model_len": 8, "dp_size": 1, "device": "cpu"}
    return SimpleNamespace(**options | other)


def test_copies_that_stood_are_known_two_chains_later():
    counts = torch.zeros(2, dtype=torch.int64)
    kept, told = KeptCopies(counts), []
    for chain in range(1, 6):
        counts += torch.tensor([chain, 2 * chain])
        told.append((kept.next(), kept.a_pass()))
    assert told == [((0, 0), 0.0), ((0, 0), 0.0), ((1, 2), 2.0), ((2, 4), 2.0), ((3, 6), 2.0)]


def test_what_stands_now_outweighs_what_stood_long_ago():
    counts = torch.zeros(2, dtype=torch.int64)
    kept = KeptCopies(counts)
    for stood in [3] * 100 + [0] * 100:
        counts += torch.tensor([1, stood])
        kept.next()
    assert 0.0 < kept.a_pass() < 0.05


def test_nothing_is_looked_up_unless_it_is_asked_for_and_there_is_a_row_for_it():
    for looks_up, most in ((False, 4), (True, 1)):
        plain, widest = steps_of(speculator(num_speculative_steps=most), looks_up=looks_up)
        assert plain is widest
        assert type(plain) is PlainSteps
        assert (plain.num_rows, plain.num_passes(3), plain.fits(10**6)) == (1, 3, True)


def test_engines_that_run_their_passes_together_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"data_parallel_size=2\): set drafter.lookup=off"):
        steps_of(speculator(dp_size=2), looks_up=True)
