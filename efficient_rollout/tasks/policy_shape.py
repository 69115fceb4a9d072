"""The shape of an embedded policy's decoder."""

from dataclasses import dataclass

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.tokenizer import VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """A Qwen3 decoder. Every linear dimension must be a multiple of 64, for packed INT8 and INT4 kernels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool

    def __post_init__(self) -> None:
        dims = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads * head_dim": self.num_heads * self.head_dim,
            "num_kv_heads * head_dim": self.num_kv_heads * self.head_dim,
        }
        for name, dim in dims.items():
            if dim % 64:
                raise ConfigError(f"{name} must be a multiple of 64, got {dim}")

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; a tied output head is counted once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads) + 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = VOCAB_SIZE * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size
