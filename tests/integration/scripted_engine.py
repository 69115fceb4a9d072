"""Engine classes for tests: the number of draft tokens comes from the requests, and faults can be switched on.

They are named by their dotted path in the engine's arguments, like the product's own.
"""

import hashlib
import types
from collections import Counter
from typing import Any

import numpy as np
import torch
from file_transfer import tensors
from vllm.compilation.counter import compilation_counter

from efficient_rollout.config import DrafterSettings
from efficient_rollout.controller.rule import PATTERN, Decision, DecodeState, Rule
from efficient_rollout.drafter import columns
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.cpu import sampling as verifier
from efficient_rollout.engine.cpu.draft_attention import AttentionWindow
from efficient_rollout.engine.cpu.proposer import SelfDraftProposer
from efficient_rollout.engine.cpu.worker import CpuWorker
from efficient_rollout.engine.drafter_model import link_report
from efficient_rollout.engine.scheduler import EfficientScheduler
from efficient_rollout.engine.tapped_target import PackedMethod

_EMITTED = verifier._emitted


class ScriptedScheduler(EfficientScheduler):
    """Takes the draft tokens of tick i from entry i (cyclically) of a list in the oldest request's `extra_args`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._book.rule = _Scripted(self)


class _Scripted(Rule):
    def __init__(self, scheduler: ScriptedScheduler) -> None:
        self.scheduler, self.num_decided = scheduler, 0

    def decide(self, state: DecodeState) -> Decision:
        pattern = (self.scheduler.running[0].sampling_params.extra_args or {}).get(PATTERN, [0])
        self.num_decided += 1
        return Decision(min(pattern[self.num_decided % len(pattern)], state.max_draft_tokens), "scripted")


class FaultyProposer(SelfDraftProposer):
    """The product's drafter until a fault is switched on."""

    mode: str | None = None
    digest = ""
    num_prepared = 0

    def prepare_next_token_ids_padded(self, *args: Any, **kwargs: Any) -> Any:
        """Stock, counted: what the runner does for a drafter before it asks for drafts."""
        self.num_prepared += 1
        return super().prepare_next_token_ids_padded(*args, **kwargs)

    def propose(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The product's, keeping a digest of every draft so far."""
        drafts = super().propose(*args, **kwargs)
        chains = self.drafts.draft_token_ids if self.num_drafted else []
        self.digest = hashlib.sha256(f"{self.digest}{chains}".encode()).hexdigest()
        return drafts

    def _sample(self, sampler: Any, positions: Any, logits: torch.Tensor) -> torch.Tensor:
        if self.mode == "raise":
            raise RuntimeError("deliberate fault")
        if self.mode == "nan":
            logits = torch.full_like(logits, torch.nan)
        if self.mode == "other-noise":
            logits = logits.roll(1, dims=-1)
        tokens = super()._sample(sampler, positions, logits)
        return (tokens * 31 + 7) % logits.shape[1] if self.mode == "lie" else tokens


def accept_everything(sampled: np.ndarray, drafts: list[list[int]]) -> Any:
    """What the verifier would keep if it took the drafts for what the policy sampled."""
    believed, row = sampled.copy(), 0
    for tokens in drafts:
        believed[row : row + len(tokens)] = tokens
        row += len(tokens) + 1
    return _EMITTED(believed, drafts)


class FaultyWorker(CpuWorker):
    """The product's worker with a `FaultyProposer`."""

    num_resumed = 0

    def init_device(self) -> None:
        """Stock, then the class of the drafter is changed in place."""
        super().init_device()
        self.calls: Counter[str] = Counter()
        if self.self_drafter is not None:
            self.self_drafter.__class__ = FaultyProposer

    def execute_model(self, scheduler_output: Any) -> Any:
        """The product's, counting requests that were preempted and came back."""
        self.num_resumed += len(scheduler_output.scheduled_cached_reqs.resumed_req_ids)
        return super().execute_model(scheduler_output)

    def take_draft_token_ids(self) -> Any:
        """Stock, counted: a question that the product's executor does not ask."""
        self.calls["take_draft_token_ids"] += 1
        return super().take_draft_token_ids()

    def take_report_of_all_ranks(self, report: Any) -> None:
        """The product's, counted."""
        self.calls["take_report_of_all_ranks"] += 1
        super().take_report_of_all_ranks(report)

    def take_calls(self) -> dict[str, int]:
        """What the executor asked for beside ticks, since the last call."""
        calls, self.calls = dict(self.calls), Counter()
        return calls

    def num_resumed_requests(self) -> int:
        """Since the engine's start."""
        return self.num_resumed

    def take_num_prepared(self) -> int:
        """Ticks in which the runner got inputs ready for the drafter, since the last call."""
        count, self.self_drafter.num_prepared = self.self_drafter.num_prepared, 0
        return count

    def set_fault(self, mode: str | None, rank: int | None = None) -> None:
        """Switch a fault on, on one rank or on all, or off and the drafter on again."""
        verifier._emitted = accept_everything if mode == "credulous" else _EMITTED
        if mode is None or rank in (None, self.rank):
            self.self_drafter.mode = None if mode == "product" else mode
            self.break_products(is_broken=mode == "product")
        self.health.drafter_fault = None

    def num_noise_streams(self) -> int:
        """Requests whose noise is kept."""
        return len(self.noise._streams)

    def forget_requests(self) -> None:
        """Number requests without a seed from the first again: they get the noise of those before."""
        self.noise._num_requests = 0

    def break_products(self, *, is_broken: bool) -> None:
        """Let the drafter's first layer raise, or compute again."""

        def multiply(self: Any, rows: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("deliberate fault")

        layer = next(iter(self.self_drafter.packed.layers.values()), None)
        if layer is not None:
            layer.__dict__.pop("_multiply", None)
            if is_broken:
                layer._multiply = types.MethodType(multiply, layer)

    def draft_digest(self) -> str:
        """Of every draft of this rank since its start, or since the last call of `forget_drafts`."""
        return self.self_drafter.digest

    def forget_drafts(self) -> None:
        """Begin a new digest of drafts."""
        self.self_drafter.digest = ""

    def compilations(self) -> dict[str, int]:
        """Graphs that were compiled, and graphs that were loaded from a cache, since the engine's start."""
        return {
            "compiled": compilation_counter.num_aot_compiles,
            "loaded": compilation_counter.num_aot_artifacts_loaded,
        }

    def sync_all_but_one_tensor(self, path: str, rank: int) -> None:
        """A weight sync in which one rank misses a tensor."""
        weights = tensors(path)
        with self.weight_sync(self) as sync:
            sync.load(weights[: -1 if rank == self.rank else None])

    def use_drafter(self, settings: dict[str, Any], policy: str) -> None:
        """Draft another way from now on: new packed layers, filled by a weight sync from the policy on disk."""
        drafter, target = self.self_drafter, self.model_runner.get_model()
        packed, wanted = drafter.packed, DrafterSettings(**settings)
        if not hasattr(self, "own_modules"):
            self.own_modules = {path: drafter.model.get_submodule(path) for path in packed.layers}
        packed.scheme, packed.quantize_output_head = make_scheme(wanted, "cpu"), wanted.quantize_output_head
        packed.layers.clear()
        self.sync_from(policy)
        for path, module in self.own_modules.items():
            if path in packed.layers:
                module.quant_method = PackedMethod(packed.layers[path])
            parent, _, name = path.rpartition(".")
            used = module if path in packed.layers else target.get_submodule(path)
            setattr(drafter.model.get_submodule(parent), name, used)
        drafter.links = link_report(drafter.model)
        # Facts of a drafter that stays as it was loaded, for a user's engine.
        share = drafter.links.packed_weight_share
        self._drafter_facts = {"drafter_bytes": packed.num_bytes, "packed_weight_share": share}
        window = wanted.attention_window_tokens
        drafter.attention.window = AttentionWindow(window, num_sink_tokens=4) if window else None

    def scramble_drafter(self, seed: int) -> None:
        """Give the drafter weights that have nothing to do with the policy's."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.self_drafter.packed.layers.values():
            weight = torch.randn(layer.out_features, layer.in_features, generator=generator).to(layer.dtype)
            layer.requantize(weight, layer.bias)

    def sync_from(self, path: str, bucket_size: int = 5) -> None:
        """A weight sync from a checkpoint on disk, in buckets, as a trainer would send it."""
        weights = tensors(path)
        with self.weight_sync(self) as sync:
            for start in range(0, len(weights), bucket_size):
                sync.load(weights[start : start + bucket_size])

    def sync_with_a_stale_head(self, path: str) -> None:
        """A weight sync after which a head that has the embedding's weight computes with a pack of another one."""
        while not columns.is_due("model.embed_tokens.weight", self.health.weights_version):
            self.sync_from(path)
        head = self.model_runner.get_model().lm_head
        pack = head.quant_method.process_weights_after_loading

        def stale(layer: Any) -> None:
            weight = layer.weight
            layer.weight = torch.nn.Parameter(-weight.data, requires_grad=False)
            pack(layer)
            layer.weight = weight

        try:
            head.quant_method.process_weights_after_loading = stale
            self.sync_from(path)
        finally:
            del head.quant_method.process_weights_after_loading

    def sync_with_a_row_flipped(self, path: str, of: str) -> None:
        """A weight sync after which one row of a layer has the other sign: the policy's, or the drafter's alone."""
        named = {"policy": "{}.weight", "drafter": "{}"}[of]
        names = [name for name in self.self_drafter.packed.layers if name.startswith("model.layers")]
        # Each is asked in one sync of some.
        while not (due := [n for n in names if columns.is_due(named.format(n), self.health.weights_version)]):
            self.sync_from(path)
        name = due[0]
        method, packed = self.model_runner.get_model().get_submodule(name).quant_method, self.self_drafter.packed
        process, apart = method.process_weights_after_loading, packed._quantized_apart

        def flipped_policy(layer: Any) -> None:
            layer.weight.data[5] *= -1
            process(layer)

        def flipped_drafter(taken: str, weight: torch.Tensor, bias: Any) -> tuple[int, torch.Tensor]:
            first, values = apart(taken, weight, bias)
            if taken == name:  # one of the rows that are looked at in this turn
                flipped = weight.clone()
                flipped[first + 3] *= -1
                packed.layers[name].requantize(flipped, bias)
            return first, values

        try:
            method.process_weights_after_loading = flipped_policy if of == "policy" else process
            packed._quantized_apart = flipped_drafter if of == "drafter" else apart
            self.sync_from(path)
        finally:
            del method.process_weights_after_loading, packed._quantized_apart

    def load_past_every_door(self, path: str) -> None:
        """What worker extensions that were written for a GPU do."""
        self.model_runner.get_model().load_weights(tensors(path))

    def reload_past_every_door(self, path: str) -> None:
        """The runner's reload, not the worker's."""
        self.model_runner.reload_weights(weights_path=path)

    def drafter_fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weight and the bias each drafter layer really computes with."""
        return {
            name: hashlib.sha256(
                layer.dequantize().numpy().tobytes()
                + (b"" if layer.bias is None else layer.bias.float().numpy().tobytes())
            ).hexdigest()
            for name, layer in self.self_drafter.packed.layers.items()
        }

    def fail_requantizing(self, *, fail: bool) -> None:
        """Make the memory for the drafter's new weights unavailable, or available again."""
        packed = self.self_drafter.packed

        def pack(self: Any, weight: torch.Tensor) -> None:
            raise MemoryError("deliberate")

        for layer in packed.layers.values():
            layer.__dict__.pop("_pack", None)
            if fail:
                layer._pack = types.MethodType(pack, layer)

    def fail_requantizing_on(self, rank: int | None) -> None:
        """As `fail_requantizing`, on one rank; None mends it on all."""
        self.fail_requantizing(fail=rank == self.rank)

    def drafter_bytes_of_rank(self) -> int:
        """Memory of this rank's part of the drafter."""
        return self.self_drafter.packed.num_bytes

    def kv_cache_facts(self) -> tuple[int, int, int]:
        """Blocks of the KV cache, its bytes (distinct storages), and the attention layers that use it."""
        context = self.vllm_config.compilation_config.static_forward_context
        storages = {
            layer.kv_cache.untyped_storage().data_ptr(): layer.kv_cache.untyped_storage().nbytes()
            for layer in context.values()
            if isinstance(getattr(layer, "kv_cache", None), torch.Tensor)
        }
        return self.model_runner.kv_cache_config.num_blocks, sum(storages.values()), len(context)
