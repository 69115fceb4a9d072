"""vLLM's CPU attention with this package's kernel where that one applies, registered through vLLM's own registry."""

from typing import Any

import torch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl, CPUAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from efficient_rollout.drafter.cpu.layers import attend

_LAYOUT = "vec"  # vLLM's name for keys transposed within a block
_MULTIPLE = 16


class NativeAttentionBackend(CPUAttentionBackend):
    """Is stock but for the kernel that attends; the cache's layout and its writing are stock."""

    @staticmethod
    def get_impl_cls() -> type["NativeAttentionImpl"]:
        return NativeAttentionImpl


class NativeAttentionImpl(CPUAttentionBackendImpl):
    """Is stock for layers with anything beyond causal attention to the whole context."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_plain = (
            self.attn_type == AttentionType.DECODER
            and self.alibi_slopes is None
            and self.sinks is None
            and not self.logits_soft_cap
            and self.sliding_window == -1
            and not self.is_fp8_kv_cache
            and self.head_size % _MULTIPLE == 0
        )

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend, by the stock contract."""
        if attn_metadata is None or attn_metadata.causal is not True or not is_native(layer, kv_cache.dtype):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
        attend(
            query if query.stride(1) == self.head_size else query.contiguous(),
            kv_cache.view(num_blocks, num_kv_heads, 2 * block_size, self.head_size),
            output,
            attn_metadata.query_start_loc,
            attn_metadata.seq_lens[: attn_metadata.query_start_loc.shape[0] - 1],
            attn_metadata.block_table,
            self.scale,
        )
        return output


def is_native(layer: Any, dtype: torch.dtype) -> bool:
    """Tell whether causal attention of an `Attention` layer always runs on the native kernel."""
    impl = layer.impl
    if not isinstance(impl, NativeAttentionImpl):
        return False
    return impl.is_plain and dtype == torch.float32 and getattr(layer, "isa", None) == _LAYOUT


def use_native_attention() -> None:
    """Use the native kernel in models built in this process from now on."""
    name = f"{NativeAttentionBackend.__module__}.{NativeAttentionBackend.__qualname__}"
    register_backend(AttentionBackendEnum.CPU_ATTN, name)
