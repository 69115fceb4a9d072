"""What the parts of one engine tell one another.

A worker's report rides up on a tick's output. The scheduler and the executor, which are in one process, share a record.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.controller.drafter_health import DrafterReport
from efficient_rollout.controller.observation import DraftCounts
from efficient_rollout.metrics.tally import Tally

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_REPORT = "efficient_rollout_report"


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Holds what a worker says at the end of a tick that has news.

    Attributes:
        health: Of the weights and of the drafter.
        num_drafted: Draft tokens per request that were drafted.
        drafts: Those each request can use, by request; None where nothing was asked for.
        drafting: What the drafter did for them; None where they stay on the device.
    """

    health: DrafterReport
    num_drafted: int = 0
    drafts: DraftTokenIds | None = None
    drafting: DraftCounts | None = None


def attach(output: ModelRunnerOutput, report: WorkerReport) -> None:
    """Let the report ride on the output, from the worker's process to the scheduler's."""
    setattr(output, _REPORT, report)


def report_on(output: ModelRunnerOutput) -> WorkerReport | None:
    """Return the report that rides on an output; None where nothing was drafted and all is as it was told last."""
    return getattr(output, _REPORT, None)


def settings_of(vllm_config: "VllmConfig") -> Settings:
    """Parse the settings an engine was started with.

    Raises:
        ConfigError: They are absent or invalid; the message names the argument to pass.
    """
    return Settings.parse(vllm_config.additional_config.get(CONFIG_KEY), where=f"additional_config[{CONFIG_KEY!r}]")


class EngineRecord:
    """Keeps one engine's record, in the process of its core.

    Attributes:
        settings: The engine's.
        tally: What the scheduler has counted; the ranks count what takes place in them.
    """

    def __init__(self, vllm_config: "VllmConfig") -> None:
        # Held, so that no other configuration gets its identity while this record lives.
        self._vllm_config = vllm_config
        self.settings = settings_of(vllm_config)
        self.tally = Tally()


_records: "WeakValueDictionary[int, EngineRecord]" = WeakValueDictionary()


def record_of(vllm_config: "VllmConfig") -> EngineRecord:
    """Return the record of the engine with this configuration, which its parts share; made at the first call.

    Raises:
        ConfigError: See `settings_of`.
    """
    record = _records.get(id(vllm_config))
    if record is None:
        record = _records[id(vllm_config)] = EngineRecord(vllm_config)
    return record
