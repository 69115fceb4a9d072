"""Start real engines on small real checkpoints, and read out of them what the tests compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efficient_rollout.config import Settings
from efficient_rollout.vllm_plugin.engine_args import engine_args

ENGINE_LIMITS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 256 << 20,
    "seed": 0,
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
}


def random_policy(
    path: Path, *, seed: int = 0, biases: bool = False, tied: bool = False, spread: float = 0.12, **other_sizes: int
) -> Path:
    """Save a small checkpoint with random weights and visibly different tokens.

    Args:
        path: Directory to write.
        seed: Of the weights.
        biases: A Qwen2 model, whose q, k and v have biases; else Qwen3.
        tied: Whether the output head is the embedding.
        spread: Standard deviation of the weights; larger is more certain about the next token.
        other_sizes: Entries of the configuration that differ from the usual ones.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **other_sizes,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if biases else Qwen3ForCausalLM(Qwen3Config(head_dim=32, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, spread)
    model.save_pretrained(path)
    return path


def start(model: Path, settings: dict[str, Any] | None, *, dtype: str = "float32", **overrides: Any) -> Any:
    """Start an engine.

    Args:
        model: Checkpoint directory.
        settings: Of this package; None starts stock vLLM without it.
        dtype: Of the policy.
        overrides: Further engine arguments.
    """
    from vllm import LLM

    ours = {} if settings is None else engine_args(str(model), Settings.parse(settings))
    return LLM(str(model), dtype=dtype, **{**ENGINE_LIMITS, **ours, **overrides})


def stop(engine: Any) -> None:
    """End an engine's processes now."""
    engine.llm_engine.engine_core.shutdown()


def generate(engine: Any, prompts: Sequence[Sequence[int]], params: Any) -> list[list[Any]]:
    """Completions per prompt: objects with `token_ids` and `logprobs`."""
    outputs = engine.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
    return [list(output.outputs) for output in outputs]
