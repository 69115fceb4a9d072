"""What every worker of this package does, whatever its device and model runner: settings, statistics, reports."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from efficient_rollout import __version__
from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.controller.tick import DrafterReport
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.scheme import Scheme
from efficient_rollout.engine import ledger
from efficient_rollout.engine.drafter_model import require_quantized
from efficient_rollout.engine.environment import installed_vllm
from efficient_rollout.engine.record import Health, WorkerReport, settings_of
from efficient_rollout.engine.register import is_registered
from efficient_rollout.engine.tapped_target import Products, TappedTargetConfig
from efficient_rollout.engine.weights.doors import WeightDoors
from efficient_rollout.errors import PluginInactiveError, WeightSyncError
from efficient_rollout.metrics.rollout_stats import Tally


class ReportingWorker(WeightDoors):
    """Stands before one of vLLM's worker classes among the bases.

    Attributes:
        self_drafter: What drafts; None in an engine that does not.
        tally: What takes place on this rank: weight syncs, drafting; ticks and tokens where the scheduler is stock.
        certificate_gap: Why a GPU's engine drafts without a certificate; None where it has one, or needs none.
    """

    self_drafter: Any = None
    certificate_gap: str | None = None
    _refused_tick: ModelRunnerOutput | None = None
    _told_health: DrafterReport | None = None
    _drafter_facts: Mapping[str, Any] = MappingProxyType({})

    if TYPE_CHECKING:
        vllm_config: Any
        model_config: Any

    def begin(self) -> None:
        """Read the settings, patch what must be patched; before the device is touched.

        Raises:
            PluginInactiveError: vLLM has not loaded this package's plugin in this process.
            PatchDriftError: vLLM has drifted from what the ledger patches.
        """
        if not is_registered():
            raise PluginInactiveError(
                "the entry point vllm.general_plugins of efficient-rollout was not called in this worker. Is "
                "VLLM_PLUGINS set to a list without 'efficient_rollout', or the package not installed there?"
            )
        self.settings = settings_of(self.vllm_config)
        ledger.apply()
        self.health = Health()
        self.tally = Tally(num_engines=1)
        self._unseen_finished_ids: set[str] = set()

    def tap_policy(self, scheme: Scheme, products: Products) -> PackedWeights:
        """Have the policy, once it is loaded, show its weights to the drafter's; return these."""
        packed = PackedWeights(scheme, quantize_output_head=self.settings.drafter.quantize_output_head)
        self.vllm_config.quant_config = TappedTargetConfig(packed, products=products)
        return packed

    def load_model(self, **kwargs: Any) -> None:
        """Load as stock does, and the drafter with it; raise SchemeUnavailableError where nothing was quantized."""
        super().load_model(**kwargs)
        if self.self_drafter is not None:
            links, packed = self.self_drafter.links, self.self_drafter.packed
            require_quantized(links, self.settings.drafter, self.model_config.dtype)
            self._drafter_facts = {
                "drafter_bytes": packed.num_bytes,
                "packed_weight_share": links.packed_weight_share,
            }

    def take_in(self, scheduler_output: SchedulerOutput) -> bool:
        """Tell whether the tick may run. One that may not is answered by `sample_tokens`.

        Raises:
            WeightSyncError: The weights are no policy's, and the scheduler is stock, which cannot be told so.
        """
        fault, has_work = self.health.weights_fault, scheduler_output.total_num_scheduled_tokens > 0
        if fault is not None and has_work:
            if not self.settings.enabled:
                raise WeightSyncError(f"the engine refuses to generate: {fault}")
            # The runner hears later of requests that ended before this tick, which it does not see.
            self._unseen_finished_ids |= scheduler_output.finished_req_ids
            self._refused_tick = _without_tokens(scheduler_output)
            self.report_on(self._refused_tick)
            return False
        if self._unseen_finished_ids:
            scheduler_output.finished_req_ids |= self._unseen_finished_ids
            self._unseen_finished_ids = set()
        if not self.settings.enabled and has_work:
            self.tally.recent.num_ticks += 1
        return True

    def take_refused_tick(self) -> ModelRunnerOutput | None:
        """Return the answer to a tick that was not run, once."""
        refused, self._refused_tick = self._refused_tick, None
        return refused

    def report_on(
        self,
        output: ModelRunnerOutput,
        num_drafted: int = 0,
        drafts: DraftTokenIds | None = None,
        drafting: DraftCounts | None = None,
    ) -> None:
        """Let the news of a tick ride on its output, where there are any."""
        health = self.health.report()
        if num_drafted or health != self._told_health:
            WorkerReport(health, num_drafted, drafts, drafting).attach(output)
            # A fault of the weights is told with every tick that it refuses.
            self._told_health = None if health.weights_fault is not None else health

    def count(self, output: ModelRunnerOutput | None) -> ModelRunnerOutput | None:
        """Return the output, its tokens counted where no scheduler of this package does that."""
        if not self.settings.enabled and isinstance(output, ModelRunnerOutput):
            self.tally.recent.num_generated_tokens += sum(len(tokens) for tokens in output.sampled_token_ids)
        return output

    def count_drafting(self, counts: DraftCounts) -> DraftCounts:
        """Return what passes of the drafter did, counted."""
        recent = self.tally.recent
        recent.num_draft_passes += counts.num_passes
        recent.num_copies += counts.num_copies
        recent.num_copies_kept += counts.num_copies_kept
        return counts

    def drafter_report(self) -> DrafterReport:
        """Return how the weights and the drafter are, on this rank."""
        return self.health.report()

    def take_report_of_all_ranks(self, report: DrafterReport) -> None:
        """Stop where another rank of the engine must."""
        self.health.agree(report)

    def repeat(self, mark: str) -> str:
        """Answer so; the executor reads answers up to this one."""
        return mark

    def take_rollout_stats(self) -> dict[str, Any]:
        """Return this rank's counts since the last call, as `RolloutStats.to_dict()`."""
        taken = self.tally.take(**self._drafter_counts()).to_dict()
        self.health.num_drafter_faults = 0
        if self.self_drafter is not None:
            self.self_drafter.stopwatch.reset()
        return taken

    def rollout_totals(self) -> dict[str, Any]:
        """Return this rank's counts since the engine started, as `RolloutStats.to_dict()`; takes nothing."""
        return self.tally.total(**self._drafter_counts()).to_dict()

    def _drafter_counts(self) -> dict[str, Any]:
        if self.self_drafter is None:
            return {}
        return {
            **self._drafter_facts,
            "draft_seconds": self.self_drafter.stopwatch.seconds(),
            "is_uncertified": int(self.certificate_gap is not None),
            "num_drafter_faults": self.health.num_drafter_faults,
        }

    def plugin_status(self) -> dict[str, Any]:
        """Return what is active in this worker, for a check before the first rollout."""
        name, version = installed_vllm()
        links = self.self_drafter.links if self.self_drafter else None
        return {
            "process_id": os.getpid(),
            "efficient_rollout": __version__,
            name: version,
            "enabled": self.settings.enabled,
            "scheme": self.settings.drafter.scheme if self.settings.enabled else None,
            "packed_layers": links.num_packed if links else 0,
            "unquantized_layers": links.num_unquantized if links else 0,
            "packed_weight_share": links.packed_weight_share if links else None,
            "drafter_fault": self.health.drafter_fault if self.self_drafter else None,
            "certificate_gap": self.certificate_gap,
            "weights_version": self.health.weights_version,
            "weights_fault": self.health.weights_fault,
            "patches": {row["name"]: row["state"] for row in ledger.status()},
        }


def _without_tokens(scheduled: SchedulerOutput) -> ModelRunnerOutput:
    """Return the worker's answer to a tick that it does not compute: nothing was sampled."""
    request_ids = list(scheduled.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=request_ids,
        req_id_to_index={request_id: row for row, request_id in enumerate(request_ids)},
        sampled_token_ids=[[] for _ in request_ids],
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
