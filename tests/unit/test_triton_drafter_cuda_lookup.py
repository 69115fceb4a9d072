"""Chains grown on the device hold the drafter's own draws, and their copies are those of `drafter/chains.py`."""

import numpy as np
import pytest
import torch
from test_drafter_chains import drafter, drawn_alone
from triton_support import DEVICE

from efficient_rollout.drafter.chains import find_copies
from efficient_rollout.drafter.cuda import lookup
from efficient_rollout.drafter.cuda.lookup import CopyingChains

VOCABULARY, MOST_TOKENS = 30, 160


class Batch:
    """Chains of a batch, and what passes are fed; `texts` end with the newest sampled token."""

    def __init__(self, texts, num_columns=8, num_copies=3, most_tokens=MOST_TOKENS, padding=0):
        n = len(texts)
        options = {"dtype": torch.int32, "device": DEVICE}
        self.texts, self.n, self.rows, self.columns = texts, n, num_copies + 1, num_columns
        self.chains = CopyingChains(
            max_requests=n + padding, max_tokens=most_tokens, num_columns=num_columns, num_copies=num_copies,
            vocabulary=VOCABULARY, device=torch.device(DEVICE),
        )  # fmt: skip
        self.input_ids = torch.full(((n + padding) * self.rows,), -7, **options)
        self.positions = torch.full(self.input_ids.shape, -7, device=DEVICE)
        self.seq_lens = torch.full((n + padding,), -7, **options)
        self.drafts = torch.full((n + padding, num_columns), -7, device=DEVICE)
        self.slots = torch.tensor([*reversed(range(n)), *[-1] * padding], **options)
        states = torch.full((n, most_tokens), -3, **options)
        for slot, text in zip(self.slots.tolist(), texts, strict=False):
            states[slot, : len(text) - 1] = torch.tensor(text[:-1])
        last = torch.tensor([text[-1] for text in reversed(texts)], device=DEVICE)
        self.firsts = torch.tensor([len(text) - 1 for text in texts], device=DEVICE)
        self.chains.begin(self.firsts, self.slots[:n], states, last)

    def feed(self):
        n = len(self.slots)
        self.chains.feed(n, self.input_ids, self.positions, self.seq_lens, self.drafts)
        return self.input_ids.view(n, -1).tolist(), self.positions.view(n, -1).tolist()

    def step(self):
        """A draft pass: each row draws after what is fed up to it."""
        ids, positions = self.input_ids.view(len(self.slots), -1).tolist(), self.positions.view(len(self.slots), -1)
        drawn = []
        for request, fed in enumerate(ids):
            first = int(positions[request, 0])
            known = [*self.texts[request], *self.chain(request)] if request < self.n else [0]
            drawn += [drafter([*known[:first], *fed[: row + 1]]) for row in range(self.rows)]
        drawn = torch.tensor(drawn, device=DEVICE)
        self.chains.keep(len(self.slots), drawn, self.input_ids, self.slots)

    def length(self, request):
        return int(self.chains._lengths[request])

    def chain(self, request):
        return self.drafts[request, : self.length(request)].tolist()


def random_text(random, size, words=4):
    return random.integers(0, words, size).tolist()


@pytest.mark.parametrize(("words", "block"), [(2, 64), (4, 4096), (25, 4096)])
def test_copies_are_those_of_the_reference(monkeypatch, words, block):
    monkeypatch.setattr(lookup, "BLOCK", block)
    random = np.random.default_rng(words)
    texts = [random_text(random, size, words) for size in [*range(1, 24), 150]]
    batch = Batch(texts, num_columns=5, num_copies=4, padding=2)
    ids, positions = batch.feed()
    for request, text in enumerate(texts):
        expected, _ = find_copies(np.array(text, dtype=np.int32), 5)
        expected = expected.tolist() or [0] * 5
        assert ids[request] == [text[-1], *expected[:4]], text
        assert positions[request] == list(range(len(text) - 1, len(text) + 4))
        assert batch.drafts[request].tolist() == expected
        assert batch.seq_lens[request] == len(text) + 4
    assert set(ids[-1] + positions[-1] + batch.drafts[-1].tolist()) == {-7}, "padding of a graph is left alone"


@pytest.mark.parametrize(("num_columns", "num_copies"), [(2, 1), (4, 3), (8, 3), (16, 7)])
def test_a_chain_is_what_the_drafter_draws_token_by_token(num_columns, num_copies):
    random = np.random.default_rng(num_columns)
    texts = [[1, 2, 3] * 9, [4, 4, 4, 4], [2], *(random_text(random, size) for size in (7, 60, 120))]
    batch = Batch(texts, num_columns, num_copies, padding=1)
    num_fed = num_passes = 0
    while any(batch.length(request) < num_columns for request in range(batch.n)):
        ids, positions = batch.feed()
        for request, text in enumerate(texts):
            chain = batch.chain(request)
            assert chain == drawn_alone(text, len(chain))
            known = [*text, *chain]
            newest = len(known) - 1
            copies = find_copies(np.array(known, dtype=np.int32), num_copies)[0].tolist() or [0] * num_copies
            first = positions[request][0]
            assert first == min(newest, len(text) - 1 + num_columns - batch.rows)
            assert ids[request] == (known[first:] + copies)[: batch.rows]
            assert batch.drafts[request].tolist()[len(chain) :] == copies[: num_columns - len(chain)] or (
                num_columns - len(chain) > num_copies
            )
        num_fed += sum(batch.length(request) < num_columns for request in range(batch.n))
        batch.step()
        num_passes += 1
    batch.feed()
    assert [row.tolist() for row in batch.drafts[: batch.n]] == [drawn_alone(text, num_columns) for text in texts]
    fed, kept = batch.chains.counts.tolist()
    assert fed == num_fed
    assert kept == num_columns * batch.n - num_fed > 0
    assert num_passes <= num_columns


def test_no_row_stands_behind_the_last_position():
    """A request near its end: earlier tokens are fed once more, and only as many drafts are drawn as have a place."""
    text, most_tokens = [1, 2, 3] * 6, 20
    batch = Batch([text], num_columns=8, num_copies=3, most_tokens=most_tokens)
    for _ in range(4):
        ids, positions = batch.feed()
        assert positions[0] == [16, 17, 18, 19]
        assert ids[0][: batch.length(0) + 2] == [*text[16:], *batch.chain(0)][: batch.rows]
        batch.step()
    assert batch.chain(0) == drawn_alone(text, most_tokens - len(text) + 1)


def test_what_is_no_token_is_not_fed():
    batch = Batch([[5, VOCABULARY, -2, 2**31 - 1, 5]])
    ids, _ = batch.feed()
    assert ids[0] == [5, 0, 0, 0]
    assert batch.drafts.tolist()[0] == [0, 0, 0, 5, 0, 0, 0, 5]


def test_a_request_that_only_pretends_is_not_counted():
    batch = Batch([[1, 2], [1, 1]])
    batch.slots.fill_(-1)
    batch.feed()
    batch.step()
    assert batch.chains.counts.tolist() == [0, 0]


def test_what_does_not_fit_is_refused():
    options = {"max_requests": 1, "vocabulary": 8, "device": torch.device(DEVICE)}
    for sizes in ({"max_tokens": 9, "num_columns": 3}, {"max_tokens": 3, "num_columns": 9}):
        with pytest.raises(ValueError, match="3 copies in chains of"):
            CopyingChains(**options, **sizes, num_copies=3)
