"""The stock executor, with one call per tick fewer."""

from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import DraftTokenIds

from efficient_rollout.vllm_plugin.worker_report import WorkerReport, report_on


class DraftsRideAlong:
    """Before a stock executor among a class's bases: drafts come back with the sampled tokens.

    Stock asks the worker for them in a second call after every tick, drafts or none, which on a small policy costs
    as much as the tick.
    """

    _report: WorkerReport | None = None

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Stock; the drafts of the tick before are spent."""
        self._report = None
        return super().execute_model(*args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Stock; the drafts that came along are kept for `take_draft_token_ids`."""
        output = super().sample_tokens(*args, **kwargs)
        self._report = report_on(output)
        return output

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """The drafts of the last tick; None where none were asked for."""
        return None if self._report is None else self._report.drafts


class EfficientExecutor(DraftsRideAlong, MultiprocExecutor):
    """With the worker in a process of its own."""
