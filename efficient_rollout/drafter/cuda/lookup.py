"""Triton kernels that grow chains of draft tokens with copies of a request's own text, all on the device.

They find what `drafter/chains.py` finds, in every place of the text, between two draft passes and without the host.
"""

import torch
import triton
import triton.language as tl

from efficient_rollout.drafter.chains import MOST_MATCHING_TOKENS

# Tokens of a text that a program of a search looks at, and its warps.
BLOCK, WARPS = 4096, 8
# A match's length stands before its place in one number, so that the largest is the longest, and of those the latest.
_PLACES = tl.constexpr(1 << 26)


@triton.jit
def begin_kernel(
    texts,  # int32 [requests, stride]
    firsts,  # int32 [requests]
    slots,  # [requests]
    all_token_ids,  # int32 [states, ids_stride]
    last_sampled,  # int64 [states]
    stride,
    ids_stride,
    BLOCK: tl.constexpr,
):
    """Copy a request's text, and the newest token behind it, BLOCK tokens in each program."""
    request, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    first, slot = tl.load(firsts + request), tl.load(slots + request).to(tl.int64)
    if (slot < 0) | (start > first):
        return
    place = start + tl.arange(0, BLOCK)
    tokens = tl.load(all_token_ids + slot * ids_stride + place, mask=place < first, other=0)
    tokens = tl.where(place == first, tl.load(last_sampled + slot).to(tl.int32), tokens)
    tl.store(texts + request * stride + place, tokens, mask=place <= first)


@triton.jit
def search_kernel(
    texts,  # int32 [requests, stride]
    firsts,  # int32 [requests]
    lengths,  # int32 [requests]
    best,  # int32 [requests]
    stride,
    LONGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Look in BLOCK places of a request's text for its end; the longest match of all programs is in `best`."""
    request, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    first = tl.load(firsts + request)
    newest = first + tl.load(lengths + request)
    if (first < 0) | (start >= newest):
        return
    text = texts + request * stride
    place = start + tl.arange(0, BLOCK)
    there = place < newest
    matches = there & (tl.load(text + place, mask=there, other=0) == tl.load(text + newest))
    if tl.max(matches.to(tl.int32), 0) > 0:
        length = matches.to(tl.int32)
        for back in range(1, LONGEST):
            there = matches & (place >= back)
            token = tl.load(text + newest - back, mask=newest >= back, other=0)
            matches = there & (tl.load(text + place - back, mask=there, other=0) == token)
            length += matches.to(tl.int32)
        tl.atomic_max(best + request, tl.max(tl.where(length > 0, length * _PLACES + place, 0), 0))


@triton.jit
def _window(first, newest, most_tokens, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Return the position of a pass's first row: no row is behind the last draft, or the model's last position."""
    return tl.minimum(tl.minimum(newest, first + COLUMNS - ROWS), most_tokens - ROWS)


@triton.jit
def feed_kernel(
    texts,  # int32 [requests, stride]
    firsts,  # int32 [requests]
    lengths,  # int32 [requests]
    best,  # int32 [requests]
    input_ids,  # int32 [requests * ROWS]
    positions,  # int64 [requests * ROWS]
    seq_lens,  # int32 [requests]
    drafts,  # int64 [requests, COLUMNS]
    stride,
    most_tokens,
    vocabulary,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Lay out a request's next rows and its drafts: its text goes on with copies behind the newest token."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(firsts + request)
    if first < 0:
        return
    newest = first + tl.load(lengths + request)
    window = _window(first, newest, most_tokens, COLUMNS, ROWS)
    found = tl.load(best + request)
    source = found % _PLACES + 1
    period = tl.maximum(newest + 1 - source, 1)
    text = texts + request * stride
    number = tl.arange(0, WIDTH)
    for of_drafts in tl.static_range(2):
        place = number + (first + 1 if of_drafts else window)
        wanted = number < (COLUMNS if of_drafts else ROWS)
        is_copy = place > newest
        at = tl.where(is_copy, source + (tl.maximum(place - newest, 1) - 1) % period, place)
        token = tl.load(text + at, mask=wanted & ((found > 0) | (place <= newest)), other=0)
        # A prompt may hold what is no token; it is fed to nobody.
        token = tl.where((token >= 0) & (token < vocabulary), token, 0)
        if of_drafts:
            tl.store(drafts + request * COLUMNS + number, token.to(tl.int64), mask=wanted)
        else:
            tl.store(input_ids + request * ROWS + number, token, mask=wanted)
            tl.store(positions + request * ROWS + number, place.to(tl.int64), mask=wanted)
    tl.store(seq_lens + request, window + ROWS)


@triton.jit
def keep_kernel(
    texts,  # int32 [requests, stride]
    firsts,  # int32 [requests]
    lengths,  # int32 [requests]
    best,  # int32 [requests]
    counts,  # int64 [2]
    drawn,  # int64 [requests * ROWS]
    input_ids,  # int32 [requests * ROWS]
    slots,  # [requests]
    stride,
    most_tokens,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Append to a request's chain the copies that equal the draws before them, and the draw behind those."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(firsts + request)
    if first < 0:
        return
    length = tl.load(lengths + request)
    newest = first + length
    window = _window(first, newest, most_tokens, COLUMNS, ROWS)
    skipped = newest - window  # rows before the newest token's; all of them where the chain is at its end
    row = tl.arange(0, WIDTH)
    token = tl.load(drawn + request * ROWS + row, mask=row < ROWS, other=-1).to(tl.int32)
    fed = tl.load(input_ids + request * ROWS + row + 1, mask=row + 1 < ROWS, other=-1)
    stands = (row + 1 < ROWS) & (token == fed)
    last = tl.min(tl.where((row < skipped) | stands, WIDTH, row), 0)
    grows = skipped < ROWS
    num_new = tl.where(grows, last - skipped + 1, 0)
    tl.store(
        texts + request * stride + newest + 1 + row - skipped,
        token,
        mask=(row >= skipped) & (row - skipped < num_new),
    )
    tl.store(lengths + request, length + num_new)
    tl.store(best + request, 0)
    if (tl.load(slots + request) >= 0) & grows:
        tl.atomic_add(counts, 1)
        tl.atomic_add(counts + 1, (num_new - 1).to(tl.int64))


class CopyingChains:
    """Grows a chain of drafts for each request of a batch, by passes that check copies of the request's own text.

    A pass feeds a window of `num_rows` tokens a request: its newest one and copies behind it, or, where a chain is
    nearly as long as it can be, tokens before the newest once more. So no row stands behind the last draft, nor behind
    the last position of the model, where a request has no room in the KV cache.

    Args:
        max_requests: Of a batch.
        max_tokens: Of a request.
        num_columns: Draft tokens of a request, at most.
        num_copies: Copies that a pass checks for a request; below `num_columns` and `max_tokens`.
        vocabulary: Token ids from there on are never fed.
        device: Of all tensors.

    Attributes:
        num_rows: Rows of a request in a pass.
        firsts: int32 [max_requests], the position of the newest sampled token; -1 where there is no request.
        counts: int64 [2], since the start: requests whose chain a pass fed, and copies that stood.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_tokens: int,
        num_columns: int,
        num_copies: int,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        if not 0 < num_copies < min(num_columns, max_tokens) or max_tokens >= _PLACES.value:
            raise ValueError(
                f"{num_copies} copies in chains of {num_columns} drafts and {max_tokens} tokens: there must be fewer "
                f"than either, and fewer than {_PLACES.value} tokens"
            )
        self.num_rows = num_copies + 1
        self._num_columns, self._max_tokens, self._vocabulary = num_columns, max_tokens, vocabulary
        self._texts = torch.zeros(max_requests, max_tokens + num_columns, dtype=torch.int32, device=device)
        self.firsts, self._lengths, self._best = (
            torch.zeros(max_requests, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self._block = min(BLOCK, triton.next_power_of_2(max_tokens))
        self._shape = {
            "COLUMNS": num_columns, "ROWS": self.num_rows, "WIDTH": triton.next_power_of_2(num_columns), "num_warps": 1,
        }  # fmt: skip

    def begin(
        self, firsts: torch.Tensor, slots: torch.Tensor, all_token_ids: torch.Tensor, last_sampled: torch.Tensor
    ) -> None:
        """Begin a chain for each request. vLLM has the texts in the host's memory, which a GPU reads slowly: once.

        Args:
            firsts: [requests], the positions of the newest sampled tokens.
            slots: [requests], where each request is in the next two; -1 for one that only pretends to be there.
            all_token_ids: int32 [states, max_tokens], the texts before those positions.
            last_sampled: int64 [states], the newest tokens.
        """
        n = len(firsts)
        self.firsts.fill_(-1)[:n] = firsts
        self._lengths.zero_()
        self._best.zero_()
        begin_kernel[self._grid(n)](
            self._texts, self.firsts, slots, all_token_ids, last_sampled, self._texts.stride(0),
            all_token_ids.stride(0), BLOCK=self._block, num_warps=WARPS,
        )  # fmt: skip

    def feed(
        self,
        num_requests: int,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        seq_lens: torch.Tensor,
        drafts: torch.Tensor,
    ) -> None:
        """Look copies up, and write what the next pass is fed.

        Args:
            num_requests: With those of a graph's padding, which get nothing.
            input_ids: int32 [requests * num_rows], overwritten.
            positions: int64 [requests * num_rows], overwritten.
            seq_lens: int32 [requests], overwritten: the last row's position and one.
            drafts: int64 [requests, num_columns], overwritten: each chain, and copies behind it.
        """
        search_kernel[self._grid(num_requests)](
            self._texts, self.firsts, self._lengths, self._best, self._texts.stride(0),
            LONGEST=MOST_MATCHING_TOKENS, BLOCK=self._block, num_warps=WARPS,
        )  # fmt: skip
        feed_kernel[(num_requests,)](
            self._texts, self.firsts, self._lengths, self._best, input_ids, positions, seq_lens, drafts,
            self._texts.stride(0), self._max_tokens, self._vocabulary, **self._shape,
        )  # fmt: skip

    def keep(self, num_requests: int, drawn: torch.Tensor, input_ids: torch.Tensor, slots: torch.Tensor) -> None:
        """Append what stands of a pass.

        Args:
            num_requests: As in `feed`.
            drawn: int64 [requests * num_rows], the token drawn at each row.
            input_ids: int32 [requests * num_rows], what the pass was fed.
            slots: [requests], as in `begin`.
        """
        keep_kernel[(num_requests,)](
            self._texts, self.firsts, self._lengths, self._best, self.counts, drawn, input_ids, slots,
            self._texts.stride(0), self._max_tokens, **self._shape,
        )  # fmt: skip

    def _grid(self, num_requests: int) -> tuple[int, int]:
        return num_requests, triton.cdiv(self._max_tokens, self._block)
