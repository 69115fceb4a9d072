"""Step "kernels": what the quantizing kernels write is, byte for byte, what Triton's interpreter writes on a CPU.

Copies of a text are those of a plain search.

Step "requantizing": seconds for all layers of a policy of 7 B parameters, and their share of the bandwidth.

Step "sampling": draws with noise that belongs to a seed and a position. vLLM's own kernel draws in an engine. The one
here shows, without vLLM, what such a kernel stands on: Triton's generator gives the same integers on a GPU as in its
interpreter, and a row's draw is the same in whatever batch.

`goldens.json` holds the interpreter's digests; a test makes them again. To write them anew, in the environment with
Triton and with TRITON_INTERPRET=1: python -m efficient_rollout.gpu_check.kernels
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import language as tl

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.chains import find_copies
from efficient_rollout.drafter.cuda.lookup import CopyingChains
from efficient_rollout.drafter.scheme import FLOAT_DTYPES, PackedLinear
from efficient_rollout.drafter.schemes import cuda_schemes
from efficient_rollout.files import read_json, write_json
from efficient_rollout.gpu_check.stand import Measured, Stand, median_seconds, require
from efficient_rollout.gpu_check.weights import addresses_of, digest, hard_weight, hashed, packed_of

GOLDENS = Path(__file__).with_name("goldens.json")
# Whole tiles of Marlin's, parts of one, one output, several groups; 200 inputs are padded.
_SHAPES = ((64, 128), (100, 256), (1, 128), (80, 200))
_GROUP_SIZES = (128, 64, 32)
# Of a large weight: whole tiles of every kernel.
_ROWS = 128
# Of texts in which copies are looked for, of so many words: several programs, parts of one, a single token.
_LENGTHS, _WORDS, _COPIES = (1, 7, 300, 5000), 50, 7
_TIMED_SCHEMES, _STEP = ("int4", "int8", "fp8"), 2.0**-9
_COPIED_BYTES = 1 << 30
# SHA-256 of the noise of two requests at three positions, as Triton's interpreter computes it.
_NOISE_DIGEST = "57d8b44fa3266a8d9fcff33b98df9515e7434576b6c55a0c1f108b97b01bb20e"
_DIGEST_SHAPE = (6, 4096)
_BLOCK = 1024
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """Describes a weight to be packed."""

    scheme: str
    group_size: int  # of int4
    dtype: torch.dtype
    shape: tuple[int, int]  # outputs, inputs
    has_bias: bool

    @property
    def name(self) -> str:
        """Return the key in the file of digests."""
        group, bias = f"-g{self.group_size}" * (self.scheme == "int4"), "-bias" * self.has_bias
        dtype, shape = str(self.dtype).removeprefix("torch."), "x".join(map(str, self.shape))
        return f"{self.scheme}{group}-{dtype}-{shape}{bias}"

    def pack(self, device: str, salt: int = 0) -> PackedLinear:
        """Make the packed layer, of other numbers for another salt."""
        scheme = cuda_schemes(DrafterSettings.model_validate({"group_size": self.group_size}))[self.scheme]
        return scheme.pack(*self.weight(device, salt))

    def weight(self, device: str, salt: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make the weight, and the bias."""
        bias = (hashed(self.shape[:1], salt + 1) * 2.0**-8).to(self.dtype).to(device) if self.has_bias else None
        return hard_weight(self.shape, self.dtype, device, salt), bias


def cases() -> Iterator[Case]:
    """Yield every combination that is compared."""
    for dtype in FLOAT_DTYPES:
        for number, shape in enumerate(_SHAPES):
            for group_size in _GROUP_SIZES if dtype == torch.bfloat16 else (128,):
                yield Case("int4", group_size, dtype, shape, has_bias=number % 2 == 1)
            for scheme in ("int8", "fp8"):
                yield Case(scheme, 128, dtype, shape, has_bias=number % 2 == 1)


def digests(device: str) -> dict[str, str]:
    """Return SHA-256 of what the kernels write on a device, by case."""
    return {case.name: digest(case.pack(device)) for case in cases()}


def check_kernels(stand: Stand) -> Measured:
    """Compare with the interpreter's digests.

    A weight that is quantized again stays where it is. Large weights are checked too.
    """
    goldens = read_json(GOLDENS, what="the digests of gpu-check", remedy="install the package again")
    found = digests(stand.device)
    require(found.keys() == goldens.keys(), "cases", GOLDENS.name, sorted(goldens), sorted(found))
    wrong = [name for name, value in found.items() if value != goldens[name]]
    first = next(iter(wrong), None)
    require(not wrong, "packed bytes", ", ".join(wrong), goldens.get(first), f"{found.get(first)} in the first")
    again = [case for case in cases() if case.dtype == torch.bfloat16 and case.shape in _SHAPES[:2]]
    for case in again:
        _check_in_place(case, stand.device)
    copies, large = _check_copies(stand.device), _check_large(stand)
    return {"equal_digests": len(found), "in_place": len(again), "copies": copies, **large}


def _check_in_place(case: Case, device: str) -> None:
    layer, expected = case.pack(device), digest(case.pack(device, salt=2))
    before = addresses_of({case.name: layer})
    layer.requantize(*case.weight(device, salt=2))
    after, found = addresses_of({case.name: layer}), digest(layer)
    require(before == after, "addresses after requantizing", case.name, before, after)
    require(found == expected, "bytes after requantizing", case.name, expected, found)


def _check_copies(device: str) -> int:
    """Check the copies of random texts; return their number."""
    generator, longest = torch.Generator().manual_seed(0), max(_LENGTHS)
    texts = torch.randint(0, _WORDS, (len(_LENGTHS), longest), generator=generator, dtype=torch.int32)
    firsts, slots = torch.tensor(_LENGTHS) - 1, torch.arange(len(_LENGTHS), dtype=torch.int32)
    chains = CopyingChains(
        max_requests=len(_LENGTHS), max_tokens=longest + _COPIES, num_columns=_COPIES + 1, num_copies=_COPIES,
        vocabulary=_WORDS, device=torch.device(device),
    )  # fmt: skip
    newest = texts[slots.long(), firsts].long()
    chains.begin(*(each.to(device) for each in (firsts, slots, texts, newest)))
    fed = torch.zeros(len(_LENGTHS), _COPIES + 1, dtype=torch.int32, device=device)
    drafts = torch.zeros(fed.shape, dtype=torch.int64, device=device)
    chains.feed(len(_LENGTHS), fed, torch.zeros_like(drafts), torch.zeros_like(fed[:, 0]), drafts)
    for text, length, found in zip(texts.numpy(), _LENGTHS, fed.tolist(), strict=True):
        copies = find_copies(text[:length], _COPIES)[0].tolist() or [0] * _COPIES
        expected = [int(text[length - 1]), *copies]
        require(found == expected, "copies", f"a text of {length} tokens", expected, found)
    return len(_LENGTHS) * _COPIES


def _check_large(stand: Stand) -> Measured:
    """Check that outputs do not interact: first and last rows of the largest weight are packed as they are alone."""
    outputs, inputs = stand.sizes.large_weight
    alone = hard_weight((_ROWS, inputs), torch.bfloat16, stand.device)
    weight = torch.zeros(outputs, inputs, dtype=torch.bfloat16, device=stand.device)
    weight[:_ROWS] = weight[-_ROWS:] = alone
    for name, scheme in cuda_schemes(DrafterSettings(group_size=128)).items():
        if scheme.layer is None:
            continue
        whole, part = (packed_of(scheme.pack(each, None)) for each in (weight, alone))
        for key, expected in part.items():
            # Marlin's buffers have outputs along the second axis, the others along the first.
            axis = int(name == "int4")
            for which, start in (("first", 0), ("last", whole[key].shape[axis] - expected.shape[axis])):
                found = whole[key].narrow(axis, start, expected.shape[axis])
                what, where = f"the {which} {_ROWS} outputs of a large weight", f"{name} {key}, {outputs} x {inputs}"
                others = f"{int((found != expected).sum())} other numbers"
                require(torch.equal(found, expected), what, where, "those of the same outputs alone", others)
    return {"largest_weight": f"{outputs} x {inputs}"}


def measure_requantizing(stand: Stand) -> Measured:
    """Requantize each of a policy's shapes again and again, in bfloat16; bytes are those read and those written."""
    size = _COPIED_BYTES if stand.is_gpu else 1 << 20
    source = torch.empty(size, dtype=torch.uint8, device=stand.device)
    target = torch.empty_like(source)
    copied = 2 * size / median_seconds(stand, lambda: target.copy_(source))
    measured: Measured = {"copy_bytes_per_second": round(copied)}
    for scheme in _TIMED_SCHEMES:
        if scheme == "fp8" and stand.is_gpu and torch.cuda.get_device_capability() < (8, 9):
            continue
        seconds = num_bytes = 0.0
        for outputs, inputs, count in stand.sizes.layers:
            weight = torch.randn(outputs, inputs, device=stand.device).mul_(_STEP).bfloat16()
            layer = cuda_schemes(DrafterSettings(group_size=128))[scheme].pack(weight, None)
            seconds += count * median_seconds(stand, lambda layer=layer, weight=weight: layer.requantize(weight))
            num_bytes += count * (weight.nbytes + layer.num_bytes)
            del weight, layer
        share = float(f"{num_bytes / seconds / copied:.3g}")
        measured[scheme] = {"seconds": round(seconds, 4), "bytes": int(num_bytes), "bandwidth_share": share}
    return measured


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
    found = hashlib.sha256(noise.cpu().numpy().tobytes()).hexdigest()
    require(found == _NOISE_DIGEST, "noise", f"{rows} x {width}", _NOISE_DIGEST, found)
    logits = (hashed((rows, width), 7) * 2.0**-5).float().to(stand.device)
    together = drawn(logits, noise).tolist()
    alone = [int(drawn(logits[[row]], noise_of(seeds[[row]], positions[[row]], width))) for row in range(rows)]
    require(together == alone, "tokens", "each row alone", together, alone)
    (batch, vocabulary), rounds = stand.sizes.draws, _ROUNDS if stand.is_gpu else 1
    numbers, logits = torch.arange(batch, device=stand.device), torch.zeros(batch, vocabulary, device=stand.device)
    draw_s = median_seconds(stand, lambda: drawn(logits, noise_of(numbers, numbers, vocabulary)), rounds)
    return {"equal_noise": rows * width, "draw_ms": float(f"{1000 * draw_s:.4g}"), "draw": f"{batch} x {vocabulary}"}


if __name__ == "__main__":
    write_json(GOLDENS, digests("cpu"))
    sys.stdout.write(f"wrote {GOLDENS}\n")
