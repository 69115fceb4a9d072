"""Small random policies, the same numbers on every machine and exact in every dtype; and shapes of large ones."""

from pathlib import Path
from typing import Any

import torch

from efficient_rollout.gpu_check.stand import Sizes
from efficient_rollout.gpu_check.weights import hashed

_NUM_HEADS, _NUM_KV_HEADS = 4, 2
_POSITIONS = 512
# Uniform weights of this step have the spread of the usual ones: a sharp, but not a certain, policy.
_STEP = 2.0**-9
# name -> transformers' class without its ending, whether words share the output head, and a salt of the weights.
POLICIES = {
    "qwen3": ("Qwen3", False, 100),
    "qwen2-tied": ("Qwen2", True, 200),
    "llama": ("Llama", False, 300),
    "qwen3-other": ("Qwen3", False, 400),
}
# Of the published configurations: what decides a tick's seconds.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "7b": (
        "Qwen2",  # Qwen2.5-7B
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064,
        },
    ),
    "8b": (
        "Llama",  # Llama-3.1-8B
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256,
        },
    ),
    "qwen3-8b": (
        "Qwen3",
        {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
    ),
    "14b": (
        "Qwen2",  # Qwen2.5-14B
        {
            "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 152064,
        },
    ),
    "tiny": (
        "Qwen3",  # shows that the code runs
        {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 96,
        },
    ),
}  # fmt: skip


def make_policy(folder: Path, name: str, sizes: Sizes) -> Path:
    """Return the folder of a policy of `POLICIES`, written where it is not there yet.

    Returns:
        A folder in `folder`.
    """
    import transformers

    path = folder / "policies" / f"{name}-{sizes.hidden_size}-{sizes.num_layers}-{sizes.vocabulary}"
    if (path / "model.safetensors").exists():
        return path
    family, is_tied, salt = POLICIES[name]
    shape = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": 2 * sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": _NUM_HEADS,
        "num_key_value_heads": _NUM_KV_HEADS,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": is_tied,
    }
    if family == "Qwen3":  # the others' is hidden_size / heads
        shape["head_dim"] = sizes.head_dim
    policy = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape))
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            integers = hashed(tuple(parameter.shape), salt + number)
            # Norms lie around one.
            parameter.copy_(integers * _STEP if parameter.ndim > 1 else 1.0 + integers * _STEP)
    policy.save_pretrained(path)
    return path


def make_shape(folder: Path, name: str) -> Path:
    """Return the folder of a shape of `SHAPES`: a configuration, without weights."""
    import transformers

    family, shape = SHAPES[name]
    path = folder / "shapes" / name
    config = getattr(transformers, f"{family}Config")(**shape, max_position_embeddings=8192, tie_word_embeddings=False)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(path)
    return path
