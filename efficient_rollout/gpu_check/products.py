"""Step "operators": the compiled operators that this package calls are there, and take what they are given.

Step "products": vLLM's kernels multiply by exactly the weights that the quantizing kernels wrote.
"""

from collections.abc import Iterator
from typing import Any

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cuda.products import LARGEST_FP8, LARGEST_INT8, multiplied_in
from efficient_rollout.drafter.scheme import PackedLinear
from efficient_rollout.drafter.schemes import cuda_schemes
from efficient_rollout.gpu_check.stand import Measured, Stand, available_schemes, require, runnable_schemes
from efficient_rollout.gpu_check.weights import hashed

# Operators in `torch.ops._C` of a CUDA build -> all their arguments, in order.
OPERATORS = {
    "marlin_gemm": "a c_or_none b_q_weight b_bias_or_none b_scales a_scales global_scale "
    "b_zeros_or_none workspace b_type_id size_m size_n size_k use_atomic_add use_fp32_reduce is_zp_float",
    "cutlass_scaled_mm": "out a b a_scales b_scales bias",
    "dynamic_scaled_int8_quant": "result input scale azp",
    "dynamic_per_token_scaled_fp8_quant": "result input scale scale_ub",
}
_NUM_ROWS = (1, 2, 3, 7, 8, 16, 17, 33, 64)
_SHAPES = ((64, 128), (100, 256), (192, 384))
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_GROUP_SIZES = (128, 64, 32)
# The entry of a row with which its scale is one, so that a kernel holds the row exactly.
_LARGEST = {"int4": 15.0, "int8": LARGEST_INT8, "fp8": LARGEST_FP8}
# Additions in float32, some of which tensor cores truncate; of the sum of magnitudes.
_SUM_ROUNDING = 2.0**-18
# Tensor cores keep some 14 bits of a sum of fp8 products.
_FP8_SUM_ROUNDING = 2.0**-13


def check_operators(stand: Stand) -> Measured:
    """Check the schemas of the compiled operators, and which schemes can run here."""
    for name, wanted in OPERATORS.items():
        found = " ".join(argument_names(stand.operators, name)) or "no such operator"
        require(found == wanted, f"arguments of the operator {name}", "vLLM's compiled library", wanted, found)
    runnable_schemes()
    return {"operators": len(OPERATORS)} | {name: why or "can run" for name, why in available_schemes().items()}


def argument_names(operators: Any, name: str) -> list[str]:
    """Return the arguments of an operator, in order; none where it does not exist."""
    operator = getattr(operators, name, None)
    if not isinstance(operator, torch._ops.OpOverloadPacket):  # noqa: SLF001 - torch has no public name for it
        return []
    return [argument.name for argument in operator.default._schema.arguments]  # noqa: SLF001 - nor for its schema


def check_products(stand: Stand) -> Measured:
    """Check that one-hot rows give the dequantized weight, and others its product, to the kernel's stated rounding."""
    worst: dict[str, float] = {}
    num_products = 0
    for scheme in runnable_schemes():
        for case, layer, bias in _layers(scheme, stand.device):
            exact_rows = torch.eye(layer.in_features, dtype=layer.dtype, device=stand.device)
            for rows in (exact_rows * _LARGEST[scheme], *_random_rows(scheme, layer, stand.device)):
                where = f"{case}, {rows.shape[0]} rows"
                error = _error(scheme, layer, bias, rows, is_gpu=stand.is_gpu)
                # A NaN is not within it either.
                require(error <= 1.0, "a product", where, "within its rounding", f"{error:.2f} of it")
                worst[scheme] = max(worst.get(scheme, 0.0), error)
                num_products += 1
            # 8 bits are not compared here: the kernel rounds the product of a scale and an integer once more.
            if bias is None and scheme == "int4":
                found, expected = layer(exact_rows).t().float(), layer.dequantize()
                worst_of, others = (found - expected).abs().max().item(), int((found != expected).sum())
                told = f"{others} other numbers, by up to {worst_of:g}"
                require(others == 0, "one-hot rows", case, "the dequantized weight", told)
    return {"products": num_products} | {f"{name}_error_over_bound": round(worst[name], 3) for name in worst}


def _layers(scheme: str, device: str) -> Iterator[tuple[str, PackedLinear, torch.Tensor | None]]:
    for dtype in _DTYPES:
        for number, shape in enumerate(_SHAPES):
            for group_size in _GROUP_SIZES if scheme == "int4" and dtype == torch.bfloat16 else (128,):
                made = cuda_schemes(DrafterSettings.model_validate({"group_size": group_size}))[scheme]
                weight = (hashed(shape, number) * 2.0**-9).to(dtype).to(device)
                bias = (hashed(shape[:1], 9) * 2.0**-6).to(dtype).to(device) if number else None
                yield f"{scheme} {group_size} {dtype} {shape[0]} x {shape[1]}", made.pack(weight, bias), bias


def _random_rows(scheme: str, layer: PackedLinear, device: str) -> Iterator[torch.Tensor]:
    for num_rows in _NUM_ROWS:
        rows = (hashed((num_rows, layer.in_features), 20 + num_rows) % 31 - 15).to(layer.dtype).to(device)
        rows[:, 7] = _LARGEST[scheme]
        yield rows


def _error(scheme: str, layer: PackedLinear, bias: torch.Tensor | None, rows: torch.Tensor, *, is_gpu: bool) -> float:
    """Return the largest error of a product, over what the kernel's roundings allow at that place."""
    dtype, weight, exact_rows = multiplied_in(layer.dtype), layer.dequantize().double(), rows.double()
    product = exact_rows @ weight.t()
    total = product if bias is None else product + bias.to(dtype).double()
    magnitudes = exact_rows.abs() @ weight.abs().t()
    # The product and, behind it, the sum with the bias are rounded; and float32 additions round.
    bound = torch.finfo(dtype).eps * (product.abs() + total.abs()) / 2 + _SUM_ROUNDING * magnitudes
    if is_gpu and scheme == "fp8":
        bound += _FP8_SUM_ROUNDING * magnitudes
    # Below the smallest normal number roundings are absolute.
    bound += torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    return ((layer(rows).double() - total).abs() / bound).max().item()
