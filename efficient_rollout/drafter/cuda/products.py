"""The products of a drafter on a GPU, by vLLM's kernels, and each in plain torch.

A product on a GPU calls the kernel. On a CPU it is the reference, which computes what the kernel computes from the same
buffers: with it the CPU's tests multiply, and with it the GPU's products are compared. The kernels add in other orders,
and fp8 tensor cores carry fewer bits in their sums than float32 has.

Kernels multiply in bfloat16 or float16; a float32 policy's drafter is multiplied in bfloat16.
"""

import torch

from efficient_rollout.drafter.cuda.layout import MarlinPack, dequantize, read_bias

# Of weights and activations, divided by their scales.
LARGEST_INT8, LARGEST_FP8 = 127.0, 448.0
# vLLM's number for its type uint4: a mantissa of 4 bits, not signed, no bias, NaN as IEEE 754 has it.
UINT4_ID = 4 << 8 | 1 << 50
# What vLLM gives Marlin: it puts up to four blocks on a multiprocessor, each with a lock.
_LOCKS_PER_MULTIPROCESSOR = 4
# Smallest scale of vLLM's fp8 kernels.
_SMALLEST_FP8_SCALE = 1 / (LARGEST_FP8 * 512)


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """Return the activations' dtype in a product, for a policy of `dtype`."""
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def marlin_locks(device: torch.device) -> torch.Tensor:
    """Return what Marlin's blocks wait for each other by: int32 zeros, which every product leaves so; none on a CPU."""
    count = 0
    if device.type == "cuda":
        count = torch.cuda.get_device_properties(device).multi_processor_count * _LOCKS_PER_MULTIPROCESSOR
    return torch.zeros(count, dtype=torch.int32, device=device)


def multiply_int4(rows: torch.Tensor, pack: MarlinPack, locks: torch.Tensor) -> torch.Tensor:
    """Compute rows W^T + bias of an int4 weight and its bias: [n, pack.num_outputs], contiguous, of the rows' dtype.

    Args:
        rows: [n, inputs], bfloat16, float16 or float32.
        pack: On the rows' device, its scales of dtype `multiplied_in(rows.dtype)`.
        locks: Of `marlin_locks`; for one product at a time.
    """
    return _marlin_gemm(rows, pack, locks) if rows.is_cuda else multiply_int4_reference(rows, pack)


def multiply_int4_reference(rows: torch.Tensor, pack: MarlinPack) -> torch.Tensor:
    """Compute as `multiply_int4` does, in plain torch.

    Weights are rounded to the activations' dtype. Sums are in float32, and are rounded; then the bias is added. Where
    one group spans all inputs Marlin scales sums instead, and rounds before it does: the last bit may differ.
    """
    dtype = pack.scales.dtype
    weight = dequantize(pack).to(dtype).float()
    product = (rows.to(dtype).float() @ weight.t()).to(dtype)
    bias = read_bias(pack)
    return (product if bias is None else product + bias).to(rows.dtype)


def multiply_channels(
    rows: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute rows W^T + bias, [n, wide] of the rows' dtype, of a weight in int8 or e4m3.

    Rows get a scale each, and values of the weight's dtype.

    A NaN among the rows is lost: the kernel makes a number of it.

    Args:
        rows: [n, inputs], bfloat16, float16 or float32.
        values: int8 or float8_e4m3fn [wide, inputs]; both multiples of 16.
        scales: float32 [wide, 1].
        bias: [wide], of dtype `multiplied_in(rows.dtype)`, or None.
    """
    return (_scaled_mm if rows.is_cuda else multiply_channels_reference)(rows, values, scales, bias)


def multiply_channels_reference(
    rows: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute as `multiply_channels` does, in plain torch, for finite rows.

    Sums are exact. Scales and bias are applied in float32, and rounded once.
    """
    rows_float32 = rows.float()
    largest = rows_float32.abs().amax(dim=1, keepdim=True)
    if values.dtype == torch.int8:
        row_scales = largest / LARGEST_INT8
        inverse = (LARGEST_INT8 / largest).masked_fill(largest <= 0, 0.0)
        row_values = (rows_float32 * inverse).round().clamp(-128, LARGEST_INT8)
    else:
        row_scales = (largest / LARGEST_FP8).clamp_min(_SMALLEST_FP8_SCALE)
        row_values = (rows_float32 / row_scales).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    product = row_scales * (scales.t() * (row_values.double() @ values.double().t()).float())
    if bias is not None:
        product = product + bias.float()
    return product.to(multiplied_in(rows.dtype)).to(rows.dtype)


def _marlin_gemm(rows: torch.Tensor, pack: MarlinPack, locks: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops._C.marlin_gemm(
        rows.to(pack.scales.dtype).contiguous(),
        None,  # a new tensor for the product
        pack.values, pack.bias, pack.scales,
        None,  # scales of the activations
        None,  # one of all weights
        pack.zeros, locks, UINT4_ID, rows.shape[0], pack.wide, pack.num_inputs,
        False,  # atomic additions
        True,  # sums of several blocks are added in float32
        False,  # zero points are integers
    )  # fmt: skip
    return product[:, : pack.num_outputs].contiguous().to(rows.dtype)


def _scaled_mm(
    rows: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = rows.contiguous()
    row_values = torch.empty_like(rows, dtype=values.dtype)
    row_scales = rows.new_empty(rows.shape[0], 1, dtype=torch.float32)
    if values.dtype == torch.int8:
        torch.ops._C.dynamic_scaled_int8_quant(row_values, rows, row_scales, None)  # symmetric
    else:
        torch.ops._C.dynamic_per_token_scaled_fp8_quant(row_values, rows, row_scales, None)  # without a largest scale
    product = rows.new_empty(rows.shape[0], values.shape[0], dtype=multiplied_in(rows.dtype))
    # It takes [inputs, outputs] with neighbouring inputs side by side: the weight's transpose, not moved.
    torch.ops._C.cutlass_scaled_mm(product, row_values, values.t(), row_scales, scales, bias)
    return product.to(rows.dtype)


# Of a GPU's instructions, such as (9, 0).
Capability = tuple[int, int]
# What each product needs: vLLM's operators, the least capability, and the one from which on vLLM has it no more.
_NEEDS: dict[str, tuple[tuple[str, ...], Capability, Capability | None]] = {
    "int4": (("marlin_gemm",), (8, 0), None),
    "int8": (("dynamic_scaled_int8_quant", "cutlass_scaled_mm"), (7, 5), (10, 0)),
    "fp8": (("dynamic_per_token_scaled_fp8_quant", "cutlass_scaled_mm"), (8, 9), None),
}


def product_missing(scheme: str, capability: Capability | None = None) -> str | None:
    """Return what a scheme's product lacks on a GPU; None when it can multiply.

    Without a `capability` the current GPU is asked, which starts CUDA in this process: it may not fork then.
    """
    operators, least, below = _NEEDS[scheme]
    if capability is None and not torch.cuda.is_available():
        return "its kernel runs on an NVIDIA GPU, and none is visible"
    absent = [name for name in operators if not hasattr(torch.ops._C, name)]
    if absent:
        return f"vLLM's {', '.join(absent)} is not loaded: install a CUDA build of vLLM"
    capability = capability or torch.cuda.get_device_capability()
    if capability < least or (below is not None and capability >= below):
        span = f"{least[0]}.{least[1]}" + (f" to below {below[0]}.{below[1]}" if below else " or more")
        return f"its kernel needs compute capability {span}, and this GPU has {capability[0]}.{capability[1]}"
    return None
