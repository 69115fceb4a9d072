"""Step "kernels": what the quantizing kernels write is, byte for byte, what Triton's interpreter writes on a CPU.

Copies of a text are those of a plain search.

Step "requantizing": seconds for all layers of a policy of 7 B parameters, and their share of the bandwidth.

`goldens.json` holds the interpreter's digests; a test makes them again. To write them anew, in the environment with
Triton and with TRITON_INTERPRET=1: python -m efficient_rollout.gpu_check.kernels
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.chains import find_copies
from efficient_rollout.drafter.cuda.lookup import CopyingChains
from efficient_rollout.drafter.scheme import FLOAT_DTYPES, PackedLinear
from efficient_rollout.drafter.schemes import cuda_schemes
from efficient_rollout.files import read_json, write_json
from efficient_rollout.gpu_check.stand import CheckFailed, Measured, Stand, require
from efficient_rollout.gpu_check.weights import addresses_of, digest, hard_weight, hashed, packed_of

GOLDENS = Path(__file__).with_name("goldens.json")
# Whole tiles of Marlin's, parts of one, one output, several groups; 200 inputs are padded.
_SHAPES = ((64, 128), (100, 256), (1, 128), (80, 200))
_GROUP_SIZES = (128, 64, 32)
# Of a large weight: whole tiles of every kernel.
_ROWS = 128
# Of texts in which copies are looked for, of so many words: several programs, parts of one, a single token.
_LENGTHS, _WORDS, _COPIES = (1, 7, 300, 5000), 50, 7
_TIMED_SCHEMES, _TIMED_ROUNDS, _STEP = ("int4", "int8", "fp8"), 3, 2.0**-9
_COPIED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """Describes a weight to be packed.

    Attributes:
        scheme: That packs it.
        group_size: Of int4.
        dtype: Of the weight.
        shape: Outputs, inputs.
        has_bias: Whether its layer has a bias.
    """

    scheme: str
    group_size: int
    dtype: torch.dtype
    shape: tuple[int, int]
    has_bias: bool

    @property
    def name(self) -> str:
        """Return the key in the file of digests."""
        parts = [self.scheme, *([f"g{self.group_size}"] if self.scheme == "int4" else [])]
        bias = ["bias"] if self.has_bias else []
        return "-".join([*parts, str(self.dtype).removeprefix("torch."), "x".join(map(str, self.shape)), *bias])

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
    require(found.keys() == goldens.keys(), "cases", where=GOLDENS.name, expected=sorted(goldens), found=sorted(found))
    wrong = [name for name, value in found.items() if value != goldens[name]]
    if wrong:
        raise CheckFailed(
            "packed bytes", where=", ".join(wrong), expected=goldens[wrong[0]], found=f"{found[wrong[0]]} in the first"
        )
    again = [case for case in cases() if case.dtype == torch.bfloat16 and case.shape in _SHAPES[:2]]
    num_in_place = sum(_check_in_place(case, stand.device) for case in again)
    return {
        "equal_digests": len(found),
        "in_place": num_in_place,
        "copies": _check_copies(stand.device),
        **_check_large(stand),
    }


def _check_in_place(case: Case, device: str) -> int:
    layer, expected = case.pack(device), digest(case.pack(device, salt=2))
    before = addresses_of({case.name: layer})
    layer.requantize(*case.weight(device, salt=2))
    after = addresses_of({case.name: layer})
    require(before == after, "addresses after requantizing", where=case.name, expected=before, found=after)
    found = digest(layer)
    require(found == expected, "bytes after requantizing", where=case.name, expected=expected, found=found)
    return 1


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
        require(found == expected, "copies", where=f"a text of {length} tokens", expected=expected, found=found)
    return len(_LENGTHS) * _COPIES


def _check_large(stand: Stand) -> Measured:
    """Check that outputs do not interact.

    The first and the last rows of the largest weight are packed as they are alone.
    """
    outputs, inputs = stand.sizes.large_weight
    alone = hard_weight((_ROWS, inputs), torch.bfloat16, stand.device)
    weight = torch.zeros(outputs, inputs, dtype=torch.bfloat16, device=stand.device)
    weight[:_ROWS] = alone
    weight[-_ROWS:] = alone
    for name, scheme in cuda_schemes(DrafterSettings(group_size=128)).items():
        if scheme.layer is None:
            continue
        whole, part = (packed_of(scheme.pack(each, None)) for each in (weight, alone))
        for key, expected in part.items():
            # Marlin's buffers have outputs along the second axis, the others along the first.
            axis = int(name == "int4")
            for where, start in (("first", 0), ("last", whole[key].shape[axis] - expected.shape[axis])):
                found = whole[key].narrow(axis, start, expected.shape[axis])
                require(
                    torch.equal(found, expected),
                    f"the {where} {_ROWS} outputs of a large weight",
                    where=f"{name} {key}, {outputs} x {inputs}",
                    expected="those of the same outputs alone",
                    found=f"{int((found != expected).sum())} other numbers",
                )
    return {"largest_weight": f"{outputs} x {inputs}"}


def measure_requantizing(stand: Stand) -> Measured:
    """Requantize each of a policy's shapes again and again, in bfloat16.

    Bytes are those read and those written.
    """
    measured: Measured = {"copy_bytes_per_second": round(_copy_bandwidth(stand))}
    for scheme in _TIMED_SCHEMES:
        if scheme == "fp8" and stand.is_gpu and torch.cuda.get_device_capability() < (8, 9):
            continue
        seconds = num_bytes = 0.0
        for outputs, inputs, count in stand.sizes.layers:
            weight = torch.randn(outputs, inputs, device=stand.device).mul_(_STEP).bfloat16()
            layer = cuda_schemes(DrafterSettings(group_size=128))[scheme].pack(weight, None)
            seconds += count * _median_seconds(stand, lambda layer=layer, weight=weight: layer.requantize(weight))
            num_bytes += count * (weight.nbytes + layer.num_bytes)
            del weight, layer
        measured[scheme] = {
            "seconds": round(seconds, 4),
            "bytes": int(num_bytes),
            "bandwidth_share": float(f"{num_bytes / seconds / measured['copy_bytes_per_second']:.3g}"),
        }
    return measured


def _copy_bandwidth(stand: Stand) -> float:
    """Return the bytes a second, read and written, of a plain copy."""
    size = _COPIED_BYTES if stand.is_gpu else 1 << 20
    source = torch.empty(size, dtype=torch.uint8, device=stand.device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(stand, lambda: target.copy_(source))


def _median_seconds(stand: Stand, work: Callable[[], object]) -> float:
    """Return the median seconds of some rounds behind one that compiles."""
    seconds = []
    for _ in range(_TIMED_ROUNDS + 1):
        stand.wait()
        started = time.perf_counter()
        work()
        stand.wait()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[_TIMED_ROUNDS // 2]


if __name__ == "__main__":
    write_json(GOLDENS, digests("cpu"))
    sys.stdout.write(f"wrote {GOLDENS}\n")
