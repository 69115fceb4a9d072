"""Start real engines on small real checkpoints, and read out of them what the tests compare.

An engine is in the test's own process where processes prove nothing: it starts in a tenth of the time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_rollout.config import Settings
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.environment import engines_in_this_process

ENGINE_LIMITS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
}


def random_policy(
    path: Path,
    *,
    seed: int = 0,
    architecture: str = "Qwen3",
    biases: bool = False,
    tied: bool = False,
    spread: float = 0.12,
    embedding_spread: float | None = None,
    **config: Any,
) -> Path:
    """Save a small checkpoint with random weights and visibly different tokens.

    Args:
        path: Directory to write.
        seed: Of the weights.
        architecture: As transformers calls it: a class `...Config` of transformers, without that ending.
        biases: A Qwen2 model, whose q, k and v have biases.
        tied: Whether the output head is the embedding.
        spread: Standard deviation of the weights; larger is more certain about the next token.
        embedding_spread: Of embeddings; None for the same. Where the head is the embedding, scaled up, less of it is
            needed for a model that does more than repeat its last token.
        config: Other values of the configuration.
    """
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config_class = getattr(transformers, f"{'Qwen2' if biases else architecture}Config")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**{**sizes, **config}))
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and not name.endswith("bias")
            is_embedding = id(parameter) in embeddings and embedding_spread is not None
            parameter.normal_(float(is_norm), embedding_spread if is_embedding else spread)
    model.save_pretrained(path)
    return path


def start(
    model: Path, settings: dict[str, Any] | None, *, dtype: str = "float32", processes: bool = False, **overrides: Any
) -> Any:
    """Start an engine.

    Args:
        model: Checkpoint directory.
        settings: Of this package; None starts stock vLLM without it.
        dtype: Of the policy.
        processes: Whether the engine and its workers have processes of their own, as users' engines do.
        overrides: Further engine arguments.
    """
    from vllm import LLM

    from efficient_rollout.engine.executor import InProcessExecutor

    ours = {} if settings is None else engine_args(str(model), Settings.parse(settings), **overrides)
    if not processes and "distributed_executor_backend" in ours:
        ours["distributed_executor_backend"] = InProcessExecutor
    with nullcontext() if processes else engines_in_this_process():
        return LLM(str(model), dtype=dtype, **{**ENGINE_LIMITS, **ours, **overrides})


def stop(engine: Any) -> None:
    """End an engine's processes now, or its workers in this one; the little it holds here goes with the process."""
    engine.llm_engine.engine_core.shutdown()


@contextmanager
def running(model: Path, settings: dict[str, Any] | None, **options: Any) -> Iterator[Any]:
    """An engine, started as by `start` and ended with the block."""
    engine = start(model, settings, **options)
    try:
        yield engine
    finally:
        stop(engine)


def sampling(**given: Any) -> Any:
    """vLLM's parameters of a request that is greedy, and goes on to its `max_tokens`, unless told otherwise."""
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "detokenize": False, **given})


def generate(engine: Any, prompts: Sequence[Sequence[int]], params: Any = None, **given: Any) -> list[list[Any]]:
    """Completions per prompt: objects with `token_ids` and `logprobs`; without `params`, of `sampling(**given)`."""
    texts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = engine.generate(texts, sampling(**given) if params is None else params, use_tqdm=False)
    return [list(output.outputs) for output in outputs]


def assert_equal(
    completions: Sequence[Any], stock: Sequence[Any], *, tie: float, rounding: float | None = None
) -> None:
    """Greedy tokens are equal up to ties, and log-probabilities up to rounding, where that is given.

    Args:
        completions: With log-probabilities.
        stock: Completions of stock vLLM's, with the two best log-probabilities of every token.
        tie: Two best log-probabilities that are closer may change places.
        rounding: Of log-probabilities.
    """
    for ours, theirs in zip(completions, stock, strict=True):
        for position, (token, expected) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)):
            if token != expected:
                best, second = sorted((entry.logprob for entry in theirs.logprobs[position].values()), reverse=True)[:2]
                assert best - second < tie, f"position {position}: {token} for {expected}, and it is no tie"
                break  # after a tie the texts are different ones
            if rounding is not None:
                ours_here, theirs_here = ours.logprobs[position][token], theirs.logprobs[position][expected]
                assert ours_here.logprob == pytest.approx(theirs_here.logprob, abs=rounding)
