"""Bytes and operations of one pass, computed from a Hugging Face `config.json` of a dense decoder."""

from dataclasses import dataclass
from pathlib import Path

from efficient_rollout.policy_config import read_policy_config

_WEIGHT_BYTES = 2  # bfloat16
_BYTES = {"float32": 4}  # of a number, where it is not two
_DRAFT_BYTES_PER_WEIGHT = 0.5 + 4 / 128  # 4 bits, and a 16-bit scale and zero point per group of 128
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Says what a decode pass reads and computes: for each weight and row a multiplication and an addition.

    Attributes:
        num_weights: Of the matrices that one pass of the policy reads, output head included.
        draft_weight_bytes: The same for a 4-bit drafter with a 16-bit output head.
        kv_bytes_per_token: Key and value bytes of one context token in bfloat16, all layers.
        description: Layer count and widths, part of the profile's key.
    """

    num_weights: int
    draft_weight_bytes: float
    kv_bytes_per_token: float
    description: str

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of `num_weights` in an engine of this dtype, as vLLM's option."""
        return self.num_weights * _BYTES.get(dtype, _WEIGHT_BYTES)

    def kv_bytes(self, dtype: str) -> float:
        """Return `kv_bytes_per_token` of an engine of this dtype."""
        return self.kv_bytes_per_token * _BYTES.get(dtype, _WEIGHT_BYTES) / _WEIGHT_BYTES


def read_model_shape(policy: Path | str) -> ModelShape:
    """Read the shape of a policy from its directory or its `config.json`.

    Raises:
        InputFileError: the file is missing, is no JSON object, or lacks a size.
    """
    config = read_policy_config(policy)
    sizes = {name: config.size(name) for name in _REQUIRED}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads = config.size("num_key_value_heads", heads)
    head_dim = config.size("head_dim", hidden // heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    body = sizes["num_hidden_layers"] * (attention + 3 * hidden * sizes["intermediate_size"])
    head = hidden * sizes["vocab_size"]
    return ModelShape(
        num_weights=body + head,
        draft_weight_bytes=_DRAFT_BYTES_PER_WEIGHT * body + _WEIGHT_BYTES * head,
        kv_bytes_per_token=2.0 * _WEIGHT_BYTES * sizes["num_hidden_layers"] * kv_heads * head_dim,
        description=f"l{sizes['num_hidden_layers']}-h{hidden}-i{sizes['intermediate_size']}"
        f"-q{heads}-kv{kv_heads}-d{head_dim}-v{sizes['vocab_size']}",
    )
