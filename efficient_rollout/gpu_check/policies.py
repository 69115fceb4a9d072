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
# Of the published configurations, what decides a tick's seconds: transformers' class, and the sizes named below.
SHAPES = {
    "7b": ("Qwen2", (3584, 18944, 28, 28, 4, 152064)),  # Qwen2.5-7B
    "8b": ("Llama", (4096, 14336, 32, 32, 8, 128256)),  # Llama-3.1-8B
    "qwen3-8b": ("Qwen3", (4096, 12288, 36, 32, 8, 151936)),
    "14b": ("Qwen2", (5120, 13824, 48, 40, 8, 152064)),  # Qwen2.5-14B
    "tiny": ("Qwen3", (128, 256, 1, 4, 2, 96)),  # shows that the code runs
}
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip


def _config(family: str, sizes: tuple[int, ...], **others: Any) -> Any:
    import transformers

    if family == "Qwen3":  # the others' is this by default
        others["head_dim"] = sizes[0] // sizes[3]
    return getattr(transformers, f"{family}Config")(**dict(zip(_SIZES, sizes, strict=True)), **others)


def make_policy(folder: Path, name: str, sizes: Sizes) -> Path:
    """Return the folder, in `folder`, of a policy of `POLICIES`, written where it is not there yet."""
    import transformers

    path = folder / "policies" / f"{name}-{sizes.hidden_size}-{sizes.num_layers}-{sizes.vocabulary}"
    if (path / "model.safetensors").exists():
        return path
    family, is_tied, salt = POLICIES[name]
    hidden, words = sizes.hidden_size, sizes.vocabulary
    shape = (hidden, 2 * hidden, sizes.num_layers, _NUM_HEADS, _NUM_KV_HEADS, words)
    config = _config(family, shape, max_position_embeddings=_POSITIONS, tie_word_embeddings=is_tied)
    policy = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            integers = hashed(tuple(parameter.shape), salt + number)
            # Norms lie around one.
            parameter.copy_(integers * _STEP if parameter.ndim > 1 else 1.0 + integers * _STEP)
    policy.save_pretrained(path)
    return path


def make_shape(folder: Path, name: str) -> Path:
    """Return the folder of a shape of `SHAPES`: a configuration, without weights."""
    family, shape = SHAPES[name]
    path = folder / "shapes" / name
    config = _config(family, shape, max_position_embeddings=8192, tie_word_embeddings=False)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(path)
    return path
