"""What a worker says at the end of a tick that has news: its drafts, and how it is. It rides on the tick's output."""

from dataclasses import dataclass

from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from efficient_rollout.controller.drafter_health import DrafterReport

_ATTRIBUTE = "efficient_rollout_report"


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One tick's report.

    Attributes:
        health: Of the weights and of the drafter.
        chain_length: Draft tokens per request that were drafted.
        drafts: Those each request can use, by request; None where nothing was asked for.
    """

    health: DrafterReport
    chain_length: int = 0
    drafts: DraftTokenIds | None = None


def attach(output: ModelRunnerOutput, report: WorkerReport) -> None:
    """Let the report ride on the output, from the worker's process to the scheduler's."""
    setattr(output, _ATTRIBUTE, report)


def report_on(output: ModelRunnerOutput) -> WorkerReport | None:
    """The report that rides on an output; None where nothing was drafted and all is as it was told last."""
    return getattr(output, _ATTRIBUTE, None)
