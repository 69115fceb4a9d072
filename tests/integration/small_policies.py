"""Random policies that are small enough for Triton's interpreter."""

from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def save_policy(
    path: Path,
    architecture: str = "Qwen3",
    *,
    seed: int = 0,
    spread: float = 0.12,
    head_spread: float | None = None,
    has_random_norms: bool = True,
    **sizes: Any,
) -> str:
    """Save a checkpoint; return its path.

    Args:
        path: Directory to write.
        architecture: As transformers calls it: a class `...ForCausalLM` of transformers, without that ending.
        seed: Of the weights.
        spread: Standard deviation of the weights.
        head_spread: Of the output head's; None for the same.
        has_random_norms: Else those of a new model.
        sizes: Values of the configuration, in the place of `SIZES`.
    """
    sizes = {**SIZES, "tie_word_embeddings": False, **sizes}
    if architecture == "Qwen3":
        sizes = {"head_dim": 32, **sizes}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{architecture}ForCausalLM")(getattr(transformers, f"{architecture}Config")(**sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread)
        elif has_random_norms:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    if head_spread is not None:
        torch.nn.init.normal_(model.lm_head.weight, std=head_spread)
    model.save_pretrained(path)
    return str(path)
