"""Step "operators": the compiled operators that this package calls are there, and take what they are given."""

from typing import Any

import torch

from efficient_rollout.gpu_check.stand import Measured, Stand, available_schemes, require, runnable_schemes

# Operators in `torch.ops._C` of a CUDA build -> all their arguments, in order.
OPERATORS = {
    "marlin_gemm": "a c_or_none b_q_weight b_bias_or_none b_scales a_scales global_scale "
    "b_zeros_or_none workspace b_type_id size_m size_n size_k use_atomic_add use_fp32_reduce is_zp_float",
    "cutlass_scaled_mm": "out a b a_scales b_scales bias",
    "dynamic_scaled_int8_quant": "result input scale azp",
    "dynamic_per_token_scaled_fp8_quant": "result input scale scale_ub",
}


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
