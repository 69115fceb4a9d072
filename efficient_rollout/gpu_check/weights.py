"""Weights that are the same numbers on every machine, exact in every dtype: from integer hashes, not a generator.

Small policies of such weights, and shapes of large ones.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from efficient_rollout.gpu_check.stand import Sizes

_MASK = 0xFFFFFFFF
_LARGEST = 127  # seven bits: bfloat16 holds eight
# Rows of a weight that is hard to quantize, by their number modulo 16: a power of two of each.
_EXPONENTS = {1: -24, 4: -14, 6: -6}  # -24: subnormal numbers of float16
_USUAL_EXPONENT = -9
# A device's own: its number of multiprocessors decides their size.
_LOCKS = "_locks"
_NUM_HEADS, _NUM_KV_HEADS = 4, 2
_POSITIONS = 512
# Uniform weights of this step have the spread of the usual ones: a sharp, but not a certain, policy.
_STEP = 2.0**_USUAL_EXPONENT
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


def hashed(shape: tuple[int, ...], salt: int) -> torch.Tensor:
    """Return integers from -127 to 127, evenly spread, int64 on the CPU: other ones for another salt below 2**16."""
    bits = (torch.arange(math.prod(shape), dtype=torch.int64) * 2654435761 + salt * 0x9E3779B1 + 1) & _MASK
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & _MASK
    return ((bits ^ (bits >> 16)) % (2 * _LARGEST + 1) - _LARGEST).reshape(shape)


def hard_weight(shape: tuple[int, int], dtype: torch.dtype, device: str, salt: int = 0) -> torch.Tensor:
    """Make a weight [outputs, inputs] on a lattice, with odd rows: tiny, one-sided, zero, even, or with an outlier."""
    integers = hashed(shape, salt)
    kind = torch.arange(shape[0]) % 16
    integers[kind == 2] = integers[kind == 2].abs() + 1
    integers[kind == 3] = 0
    integers[kind == 5] = 5
    weight = integers.double() * 2.0**_USUAL_EXPONENT
    for number, exponent in _EXPONENTS.items():
        weight[kind == number] = integers[kind == number].double() * 2.0**exponent
    weight[kind == 7, 1] = 96.0
    return weight.to(dtype).to(device)


def tensors_of(layer: Any) -> dict[str, torch.Tensor]:
    """Return every tensor that a packed layer holds, by name, those of layers inside it too."""
    is_record = dataclasses.is_dataclass(layer)
    held = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)} if is_record else vars(layer)
    found = {}
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif dataclasses.is_dataclass(value) or hasattr(value, "requantize"):
            found |= {f"{name}.{key}": tensor for key, tensor in tensors_of(value).items()}
    return found


def packed_of(layer: Any) -> dict[str, torch.Tensor]:
    """Return what a weight decides of `tensors_of`; 8-bit floats as their bits, which compare on every device."""
    return {
        name: tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
        for name, tensor in tensors_of(layer).items()
        if not name.endswith(_LOCKS)
    }


def digest(layer: Any) -> str:
    """Return SHA-256 of everything a packed layer holds but what belongs to the device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(packed_of(layer).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digests_of(layers: Mapping[str, Any]) -> dict[str, str]:
    """Return SHA-256 of each packed layer, by name."""
    return {name: digest(layer) for name, layer in layers.items()}


def addresses_of(layers: Mapping[str, Any]) -> dict[str, int]:
    """Return where every tensor of packed layers lies, by name."""
    return {
        f"{name}.{key}": tensor.data_ptr()
        for name, layer in layers.items()
        for key, tensor in tensors_of(layer).items()
    }


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
