"""What of the policy the drafter reads quantized: counted when it is built, and said where it is not what was asked."""

import logging
from dataclasses import dataclass

import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.schemes import require_taken
from efficient_rollout.engine.tapped_target import PackedMethod
from efficient_rollout.errors import SchemeUnavailableError

logger = logging.getLogger(__name__)

_LAYERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class LinkedLayer:
    """Describes one matrix of the drafter.

    Attributes:
        name: As in the policy.
        shape: Of the policy's weight on this rank: outputs, inputs.
        is_packed: Computed with quantized weights; else it is the policy's own.
        is_head: The output head.
    """

    name: str
    shape: tuple[int, int]
    is_packed: bool
    is_head: bool

    @property
    def num_weights(self) -> int:
        """Return the number of elements of the policy's weight."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class LinkReport:
    """Lists every matrix that a draft step reads."""

    layers: tuple[LinkedLayer, ...]

    @property
    def num_packed(self) -> int:
        """Return the number of layers computed with quantized weights."""
        return sum(layer.is_packed for layer in self.layers)

    @property
    def num_unquantized(self) -> int:
        """Return the number of layers that are the policy's own."""
        return len(self.layers) - self.num_packed

    @property
    def packed_weight_share(self) -> float:
        """Return the share of a draft step's weights, by number, that it reads quantized."""
        num_packed = sum(layer.num_weights for layer in self.layers if layer.is_packed)
        return num_packed / sum(layer.num_weights for layer in self.layers)


def link_report(drafter: torch.nn.Module) -> LinkReport:
    """Look at a linked drafter's modules."""
    modules = dict(drafter.named_modules())
    # A policy without a head of its own computes logits with its embedding.
    has_head = any(isinstance(module, ParallelLMHead) for module in modules.values())
    head = ParallelLMHead if has_head else VocabParallelEmbedding
    return LinkReport(
        tuple(
            LinkedLayer(name, _shape(module), isinstance(module.quant_method, PackedMethod), isinstance(module, head))
            for name, module in modules.items()
            if isinstance(module, LinearBase | head)
        )
    )


def _shape(layer: torch.nn.Module) -> tuple[int, int]:
    # The weight itself is no guide: on a CPU vLLM repacks it, and drops the original.
    if isinstance(layer, VocabParallelEmbedding):
        return layer.num_embeddings_per_partition, layer.embedding_dim
    outputs = getattr(layer, "output_size_per_partition", layer.output_size)
    return outputs, getattr(layer, "input_size_per_partition", layer.input_size)


def require_quantized(report: LinkReport, settings: DrafterSettings, dtype: torch.dtype) -> None:
    """Refuse a drafter that is the policy itself where that was not asked for; warn of one that is so in part.

    Args:
        report: Of the drafter just built.
        settings: The drafter's part of the settings tree.
        dtype: Of the policy.

    Raises:
        SchemeUnavailableError: Nothing is quantized.
    """
    wanted = [layer for layer in report.layers if settings.quantize_output_head or not layer.is_head]
    left = [layer for layer in wanted if not layer.is_packed]
    if settings.scheme == "unquantized" or not left:
        return
    require_taken(settings, [layer.shape for layer in wanted], dtype)
    names = ", ".join(f"{layer.name} ({layer.shape[0]} x {layer.shape[1]})" for layer in left[:_LAYERS_NAMED])
    names += ", ..." if len(left) > _LAYERS_NAMED else ""
    if len(left) == len(wanted):
        raise SchemeUnavailableError(
            f"drafter.scheme={settings.scheme} quantized no layer of this policy ({names}), though it takes some of "
            f"these shapes in {dtype}: vLLM builds them where the drafter cannot see their weights. Set "
            f"efficient_rollout.enabled=false, or report the policy's architecture."
        )
    logger.warning(
        "drafter.scheme=%s quantizes only %.0f %% of the weights a draft step reads; %d of %d layers are the policy's "
        "own, at its price: %s",
        settings.scheme, 100.0 * report.packed_weight_share, len(left), len(wanted), names,
    )  # fmt: skip
