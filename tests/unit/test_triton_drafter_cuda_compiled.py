"""What a compiler for GPUs that are not here makes of the kernels that quantize and look copies up.

Run as a script, without Triton's interpreter, this file compiles them and writes what it found as JSON: a process that
has loaded Triton for its interpreter cannot compile.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CAPABILITIES = (80, 90)
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
GROUP_SIZES = (128, 64, 32)
# Compute capability, scheme, dtype of the weight, group size.
VARIANTS = [
    *(
        (capability, "int4", dtype, size)
        for capability in CAPABILITIES
        for dtype in WEIGHT_BYTES
        for size in GROUP_SIZES
    ),
    *((capability, "int4 of one group", "bf16", 128) for capability in CAPABILITIES),
    *(
        (capability, name, dtype, 0)
        for capability in CAPABILITIES
        for name in ("int8", "fp8")
        for dtype in WEIGHT_BYTES
    ),
]
# A search's kernels: with as many columns and rows as there can be, and with the default's.
LOOKUPS = [
    (capability, f"{name} of {columns}", "bf16", columns)
    for capability in CAPABILITIES
    for name in ("begin", "search", "feed", "keep")
    for columns in ((4, 16) if name in ("feed", "keep") else (16,))
]
# Of the 65536 of a multiprocessor, a thread: 640 threads of int4 and more share one, and 1024 of the others.
MOST_REGISTERS = {"int4": 96, "int4 of one group": 96, "int8": 64, "fp8": 64}
# An instruction -> why it must not be there.
INEXACT = {
    "div.full": "not IEEE's division",
    "div.approx": "not IEEE's division",
    "rcp.approx": "not IEEE's division",
    "fma.rn.f32": "rounds once where the interpreter rounds twice",
    ".ftz": "takes subnormal numbers for zero",
}


def source_of(name: str, dtype: str, group_size: int):
    """A kernel with the types and alignments of a launch, its warps, and its constants."""
    from triton.compiler import ASTSource

    from efficient_rollout.drafter.cuda import quantize

    if " of " in name and not name.startswith("int4"):
        return source_of_lookup(name.split()[0], group_size)
    if name.startswith("int4"):
        kernel, warps = quantize.int4_kernel, quantize.INT4_WARPS
        types = {"weight": f"*{dtype}", "values": "*i32", "scales": "*fp16" if dtype == "fp16" else "*bf16"}
        types |= {"zeros": "*i32", "num_outputs": "i32", "wide": "i32", "stride": "i32"}
        constants = {"GROUP": group_size, "IS_ONE_GROUP": name == "int4 of one group"}
    else:
        kernel, warps = quantize.channel_kernel, quantize.CHANNEL_WARPS
        types = {"weight": f"*{dtype}", "values": "*i8" if name == "int8" else "*u8", "scales": "*fp32"}
        types |= {"num_outputs": "i32", "wide": "i32", "inputs": "i32", "stride": "i32"}
        rows, block = quantize.CHANNEL_TILE
        largest = quantize.LARGEST_INT8 if name == "int8" else quantize.LARGEST_FP8
        constants = {"LARGEST": largest, "IS_INTEGER": name == "int8", "ROWS": rows, "BLOCK": block}
    signature = types | dict.fromkeys(constants, "constexpr")
    # Every argument but the number of real outputs is a multiple of 16, as the JIT finds at a launch.
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(types) if key != "num_outputs"}
    return ASTSource(kernel, signature, constants, aligned), warps


def source_of_lookup(name: str, columns: int):
    """The same of a kernel that looks copies up."""
    from triton.compiler import ASTSource

    from efficient_rollout.drafter.cuda import lookup

    rows = min(columns, 8)
    constants = {"BLOCK": lookup.BLOCK, "LONGEST": lookup.MOST_MATCHING_TOKENS, "COLUMNS": columns, "ROWS": rows}
    constants["WIDTH"] = columns
    kernel = getattr(lookup, f"{name}_kernel")
    longs = ("positions", "drafts", "drawn", "last_sampled", "counts")
    numbers = ("stride", "ids_stride", "most_tokens", "vocabulary")
    signature = {
        argument: "constexpr" if argument in constants else "i32" if argument in numbers
        else "*i64" if argument in longs else "*i32"
        for argument in kernel.arg_names
    }  # fmt: skip
    constants = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return ASTSource(kernel, signature, constants, aligned), lookup.WARPS if "BLOCK" in constants else 1


def assembled(ptx: str, capability: int, folder: Path) -> str:
    """ptxas's own report, of the one that Triton brings."""
    import triton

    (folder / "kernel.ptx").write_text(ptx)
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr


def widths(ptx: str, direction: str) -> list[int]:
    """Bits that each `ld` or `st` of global memory moves for a thread, whether or not a mask lets it."""
    found = re.findall(rf"\b{direction}\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx)
    return [int(vector or 1) * int(bits) for vector, bits in found]


def compiled(capability: int, name: str, dtype: str, group_size: int, folder: Path) -> dict:
    """What is asserted of a variant."""
    import triton
    from triton.backends.compiler import GPUTarget

    source, warps = source_of(name, dtype, group_size)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    report = assembled(ptx, capability, folder)
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "shared_bytes": kernel.metadata.shared,
        "inexact": [instruction for instruction in INEXACT if instruction in ptx],
        "load_bits": widths(ptx, "ld"),
        "store_bits": widths(ptx, "st"),
        "loaded_bytes": sum(widths(ptx, "ld")) // 8 * 32 * warps,
        "stored_bytes": sum(widths(ptx, "st")) // 8 * 32 * warps,
        "rounds_to_integers": "0f4B400000" in ptx and "0fCB400000" in ptx,
    }


if __name__ == "__main__":
    work_folder = Path(sys.argv[1])
    found = [compiled(*variant, work_folder) for variant in (*VARIANTS, *LOOKUPS)]
    (work_folder / "found.json").write_text(json.dumps(found))
    sys.exit()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[tuple, dict]:
    pytest.importorskip("triton_support")
    folder = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)
    return dict(zip([*VARIANTS, *LOOKUPS], json.loads((folder / "found.json").read_text()), strict=True))


VARIANT = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))


@VARIANT
def test_nothing_spills(kernels, variant):
    kernel = kernels[variant]
    assert kernel["spilled_bytes"] == 0
    assert kernel["registers"] <= MOST_REGISTERS[variant[1]]
    assert kernel["shared_bytes"] <= 4096


@pytest.mark.parametrize("variant", LOOKUPS, ids=lambda variant: "-".join(map(str, variant)))
def test_no_search_spills(kernels, variant):
    """A program of a search has 256 threads and reads a text once: three share a multiprocessor."""
    kernel = kernels[variant]
    assert kernel["spilled_bytes"] == 0
    assert kernel["registers"] <= 80
    assert kernel["shared_bytes"] <= 4096


@VARIANT
def test_arithmetic_is_the_interpreter_s(kernels, variant):
    assert {instruction: INEXACT[instruction] for instruction in kernels[variant]["inexact"]} == {}
    assert kernels[variant]["rounds_to_integers"], "no rounding by adding and subtracting a large number"


@VARIANT
def test_weights_are_loaded_128_bits_at_a_time(kernels, variant):
    assert set(kernels[variant]["load_bits"]) == {128}
    # Of 256 threads a group of 64 outputs; eight bytes of 128 threads.
    assert max(kernels[variant]["store_bits"]) == (variant[3] or 64)


@VARIANT
def test_little_more_is_moved_than_the_weight_and_its_pack(kernels, variant):
    _, name, dtype, group_size = variant
    kernel, outputs, inputs = kernels[variant], 37888, 3584  # gate and up of Qwen2.5-7B
    weight_bytes = outputs * inputs * WEIGHT_BYTES[dtype]
    if name.startswith("int4"):
        num_programs = outputs // 64 * (inputs // group_size)
        assert num_programs * kernel["loaded_bytes"] == weight_bytes
        # A scale and a word of zero points are counted for all 256 threads; a mask leaves 64 and 8.
        assert num_programs * (kernel["stored_bytes"] - 256 * (2 + 4)) == outputs * inputs // 2
        pack_bytes = outputs * inputs // 2 + num_programs * (64 * 2 + 8 * 4)
        moved = num_programs * (kernel["loaded_bytes"] + kernel["stored_bytes"])
        assert moved < 1.3 * (weight_bytes + pack_bytes)
    else:
        # Twice, the second time out of a cache: a row is at most some 60 KB. And in whole blocks, masked at the end.
        num_blocks = outputs * -(-inputs // 1024)
        assert num_blocks * kernel["loaded_bytes"] <= 2 * weight_bytes * 4096 / 3584
        assert num_blocks * kernel["stored_bytes"] < 2 * outputs * inputs
