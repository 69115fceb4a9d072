"""Step "sampling": draws with noise that belongs to a seed and a position, from a kernel of Triton alone.

vLLM's own kernel draws in an engine. This one shows, without vLLM, what such a kernel stands on: Triton's generator
gives the same integers on a GPU as in its interpreter, and a row's draw is the same in whatever batch.
"""

import hashlib

import torch
import triton
from triton import language as tl

from efficient_rollout.gpu_check.stand import Measured, Stand, median_seconds, require
from efficient_rollout.gpu_check.weights import hashed

# SHA-256 of the noise of two requests at three positions, as Triton's interpreter computes it.
_NOISE_DIGEST = "57d8b44fa3266a8d9fcff33b98df9515e7434576b6c55a0c1f108b97b01bb20e"
_DIGEST_SHAPE = (6, 4096)
_BLOCK = 1024
_ROUNDS = 20


@triton.jit
def noise_kernel(noise, seeds, positions, width, BLOCK: tl.constexpr):
    """Write noise, int32 [rows, width], by each row's seed and position, int64 [rows]; a program writes a block."""
    row = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.randint(tl.load(seeds + row), tl.load(positions + row).to(tl.int32))
    tl.store(noise + row * width + place, tl.randint(key, place), mask=place < width)


def noise_of(seeds: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return the noise of rows, int32 [rows, width]."""
    noise = torch.empty(len(seeds), width, dtype=torch.int32, device=seeds.device)
    noise_kernel[(len(seeds), triton.cdiv(width, _BLOCK))](noise, seeds, positions, width, BLOCK=_BLOCK)
    return noise


def drawn(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw tokens, int64 [rows]: the largest of logits [rows, width] and Gumbel noise."""
    uniform = ((noise.long() & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
    return (logits.double() - (-uniform.log()).log()).argmax(dim=1)


def check_sampling(stand: Stand) -> Measured:
    """Check that noise is the interpreter's, bit for bit, and a row's draw its own in every batch; time a draw."""
    rows, width = _DIGEST_SHAPE
    seeds = torch.tensor([5, 5, 5, 1 << 40, 1 << 40, 1 << 40], device=stand.device)
    positions = torch.tensor([0, 1, 99, 0, 1, 99], device=stand.device)
    noise = noise_of(seeds, positions, width)
    digest = hashlib.sha256(noise.cpu().numpy().tobytes()).hexdigest()
    require(digest == _NOISE_DIGEST, "noise", f"{rows} x {width}", _NOISE_DIGEST, digest)
    logits = (hashed((rows, width), 7) * 2.0**-5).float().to(stand.device)
    together = drawn(logits, noise).tolist()
    alone = [int(drawn(logits[[row]], noise_of(seeds[[row]], positions[[row]], width))) for row in range(rows)]
    require(together == alone, "tokens", "each row alone", together, alone)
    (batch, vocabulary), rounds = stand.sizes.draws, _ROUNDS if stand.is_gpu else 1
    numbers, logits = torch.arange(batch, device=stand.device), torch.zeros(batch, vocabulary, device=stand.device)
    draw_s = median_seconds(stand, lambda: drawn(logits, noise_of(numbers, numbers, vocabulary)), rounds)
    return {"equal_noise": rows * width, "draw_ms": float(f"{1000 * draw_s:.4g}"), "draw": f"{batch} x {vocabulary}"}
