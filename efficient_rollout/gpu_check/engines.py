"""A stand's engines for what measures in engines: `calibrate_engine` and `run_plan`."""

from dataclasses import dataclass, field
from typing import Any

from efficient_rollout.config import Settings
from efficient_rollout.gpu_check.stand import Stand, drafting_options
from efficient_rollout.measuring.starting import EngineLimits, Engines


@dataclass(frozen=True)
class StandEngines(Engines):
    """Starts engines of a stand.

    Attributes:
        stand: Where they are.
        options: Of vLLM's, for all of them.
        spoiled_share: Of drafts that are made wrong, see `RecordingV2.spoil_drafts`.
    """

    stand: Stand
    options: dict[str, Any] = field(default_factory=dict)
    spoiled_share: float = 0.0

    def start_plain(self, model: str, limits: EngineLimits) -> Any:
        """Start stock vLLM."""
        return self.stand.start(**limits.to_args(model) | self.options)

    def start_vllm_lookup(self, model: str, limits: EngineLimits, method: str, num_draft_tokens: int) -> Any:
        """Refuse: no step asks for one."""
        raise NotImplementedError

    def start_self_drafting(self, model: str, limits: EngineLimits, settings: Settings) -> Any:
        """Start an engine that drafts as requests say, and is recorded."""
        ours = drafting_options(model, settings, self.stand.recording_worker)
        engine = self.stand.start(**limits.to_args(model) | ours | self.options)
        engine.collective_rpc("spoil_drafts", args=(self.spoiled_share,))
        return engine
