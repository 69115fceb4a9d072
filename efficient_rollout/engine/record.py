"""What the parts of one engine tell one another.

A worker's report rides up on a tick's output. The ranks of an engine tell one another of a chain that failed. The
scheduler and the executor, which are in one process, share a record.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.controller.tick import DrafterReport
from efficient_rollout.metrics.rollout_stats import Tally

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from efficient_rollout.drafter.packed_weights import PackedWeights

logger = logging.getLogger(__name__)

_REPORT = "efficient_rollout_report"


@dataclass(slots=True)
class Health:
    """Is the one place on a rank that knows how its weights and its drafter are, with fields as in `DrafterReport`.

    `num_drafter_faults` turned the drafter off since they were counted last; the next weight sync requantizes it then.
    """

    weights_version: int = 0
    weights_fault: str | None = None
    drafter_fault: str | None = None
    num_drafter_faults: int = 0

    def report(self) -> DrafterReport:
        """Return what the scheduler is told."""
        return DrafterReport(self.weights_version, self.weights_fault, self.drafter_fault)

    def lose_weights(self, fault: str) -> None:
        """Say that the weights are no policy's, and so neither are the drafter's."""
        self.weights_fault = self.drafter_fault = fault

    def take_weights(self) -> None:
        """Say that a policy's weights have arrived, all of them."""
        self.weights_version += 1
        self.weights_fault = self.drafter_fault = None

    def turn_off_drafter(self, fault: str) -> None:
        """Stop drafting in this engine, loudly. The engine goes on; no sample is lost or changed."""
        self.drafter_fault = fault
        self.num_drafter_faults += 1
        logger.error("the self-drafter failed and is turned off in this engine; decoding goes on plainly: %s", fault)

    def agree(self, report: DrafterReport) -> None:
        """Stop where another rank of the engine must: ranks generate, and draft, together or not at all."""
        self.weights_version, self.weights_fault = report.weights_version, report.weights_fault
        if self.drafter_fault is None and report.drafter_fault is not None:
            self.turn_off_drafter(report.drafter_fault)


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Holds what a worker says at the end of a tick that has news.

    Attributes:
        num_drafted: Draft tokens per request that were drafted.
        drafts: Those each request can use, by request; None where nothing was asked for.
        drafting: What the drafter did for them; None where they stay on the device.
    """

    health: DrafterReport
    num_drafted: int
    drafts: DraftTokenIds | None
    drafting: DraftCounts | None

    def attach(self, output: ModelRunnerOutput) -> None:
        """Ride on the output, from the worker's process to the scheduler's."""
        setattr(output, _REPORT, self)


def report_on(output: ModelRunnerOutput) -> WorkerReport | None:
    """Return the report that rides on an output; None where nothing was drafted and all is as it was told last."""
    return getattr(output, _REPORT, None)


def settings_of(vllm_config: "VllmConfig") -> Settings:
    """Parse an engine's settings; ConfigError, where they are absent or invalid, names the argument to pass."""
    return Settings.parse(vllm_config.additional_config.get(CONFIG_KEY), where=f"additional_config[{CONFIG_KEY!r}]")


class EngineRecord:
    """Keeps an engine's settings, and the tally of what its scheduler has counted, in the process of its core."""

    def __init__(self, vllm_config: "VllmConfig") -> None:
        # Held, so that no other configuration gets its identity while this record lives.
        self._vllm_config = vllm_config
        self.settings = settings_of(vllm_config)
        self.tally = Tally()


_records: "WeakValueDictionary[int, EngineRecord]" = WeakValueDictionary()


def record_of(vllm_config: "VllmConfig") -> EngineRecord:
    """Return the record of the engine with this configuration, which its parts share; made at the first call.

    Raises:
        ConfigError: As `settings_of`.
    """
    record = _records.get(id(vllm_config))
    if record is None:
        record = _records[id(vllm_config)] = EngineRecord(vllm_config)
    return record


class DrafterFault(RuntimeError):
    """Says that a chain failed, on whichever rank."""


def fault_of(error: Exception) -> str:
    """Return what is said of a chain that raised."""
    return str(error) if isinstance(error, DrafterFault) else f"{type(error).__name__}: {error}"


class Ranks:
    """Runs one chain at a time, on every rank of an engine.

    Each rank holds a part of every layer, and waits for the others' parts many times a step. So what fails on one
    must not end the chain there: its products become zeros (`PackedLinear.faults`), its draws the first token, and at
    the end the ranks tell one another, once. Every rank draws the same tokens from the same gathered logits with the
    same noise, which belongs to a request and a position.

    An exception anywhere else is taken for one that every rank meets, because every rank computes it from the same
    data. An engine of one rank has nobody to wait for: there the first fault raises.

    A captured step is replayed by every rank or by none, and nothing in it can fail on one rank and go on: so replays
    end without being asked.

    Args:
        packed: The drafter's weights, before a layer is packed.
        device: For what ranks tell one another: vLLM's collectives of a GPU take tensors of a GPU.
    """

    def __init__(self, packed: "PackedWeights", device: torch.device | None = None) -> None:
        self._device = device
        self._size, self._rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self._faults: list[str] = []
        if self._size > 1:
            packed.product_faults = self._faults

    def begin(self) -> None:
        """Begin a chain."""
        self._faults.clear()

    def draw(self, draw: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Draw a token, int64 [num_requests], by logits [num_requests, vocab] that are the same on every rank."""
        try:
            return draw(logits)
        except Exception as error:
            if self._size == 1:
                raise
            self._faults.append(fault_of(error))
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def end(self) -> None:
        """End the chain on every rank; raise DrafterFault where it failed on one."""
        failed = [] if self._size == 1 else self.votes().nonzero().flatten().tolist()
        if failed:
            others = ", ".join(map(str, failed))
            raise DrafterFault(self._faults[0] if self._faults else f"it failed on rank {others}, whose log says why")

    def votes(self) -> torch.Tensor:
        """Return which ranks have failed since `begin`: float32 [ranks] on the device, 1 for one that has."""
        ranks = torch.arange(self._size, device=self._device)
        return tensor_model_parallel_all_reduce((ranks == self._rank).float() * bool(self._faults))
