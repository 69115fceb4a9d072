"""INT8 on CPUs without VNNI: FBGEMM's kernels for AVX2, where oneDNN has none that are fast."""

import warnings

import torch

from efficient_rollout.drafter.int8 import quantize_int8
from efficient_rollout.drafter.packed_linear import PackedLinear

# Without VNNI, products of 8-bit activations and weights are summed in pairs in 16 bits, which overflow: activations
# get 7 bits, -63 to 63 around a zero point of 64.
_ACTIVATION_SCALE, _ACTIVATION_ZERO_POINT = 1 / 63, 64
_TINY = torch.finfo(torch.float32).tiny
_ENGINE = "x86"


def fbgemm_missing() -> str | None:
    """What FBGEMM lacks here; None when it can run."""
    if _ENGINE not in torch.backends.quantized.supported_engines:
        available = ", ".join(torch.backends.quantized.supported_engines)
        return f"this build of torch has no quantized engine {_ENGINE!r}, only {available}"
    if not hasattr(torch, "_make_per_channel_quantized_tensor"):
        return "this build of torch has no quantized tensors, which FBGEMM packs its weights from"
    return None


class Int8FbgemmLinear(PackedLinear):
    """FBGEMM's own packed weight; each row of activations is scaled to its largest value."""

    def _pack(self, weight: torch.Tensor) -> None:
        values, scales = quantize_int8(weight)
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        before = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # torch means to drop quantized tensors; `fbgemm_missing` says so when it has.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
            tensor = torch._make_per_channel_quantized_tensor(values, scales.squeeze(1).double(), zeros, 0)
        torch.backends.quantized.engine = _ENGINE
        try:
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        finally:
            torch.backends.quantized.engine = before

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.float()
        # FBGEMM's own dynamic quantization has one scale for all rows: the drafts of a sequence would depend on its
        # neighbours, and those of a quiet one be lost beside a loud one.
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY)
        output: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest, _ACTIVATION_SCALE, _ACTIVATION_ZERO_POINT, self._packed
        )
        output *= largest
        if self.bias is not None:
            output += self.bias
        return output.to(self.dtype)

    @property
    def num_bytes(self) -> int:
        # A byte a weight, and per output channel a scale, a zero point and a column sum of 4 bytes.
        return self.out_features * (self.in_features + 3 * 4) + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        weight: torch.Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].dequantize()
        return weight
