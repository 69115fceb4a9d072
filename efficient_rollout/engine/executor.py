"""The stock executor, with one call per tick fewer."""

from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import DraftTokenIds

from efficient_rollout.controller.drafter_health import DrafterReport
from efficient_rollout.engine.worker_report import WorkerReport, report_on

_TICK = ("execute_model", "sample_tokens")


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


class InProcessExecutor(DraftsRideAlong, UniProcExecutor):
    """With one worker, in the engine's own process; for `environment.engines_in_this_process`."""


class EfficientExecutor(DraftsRideAlong, MultiprocExecutor):
    """With every worker in a process of its own.

    Only the first rank answers a tick. What a call between ticks left behind, on whichever rank, a weight sync that
    failed there for one, is made known to every rank before the next.
    """

    _is_heard = False
    _num_failed = 0

    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Stock; what the call does to a rank is asked before the next tick.

        Raises:
            RuntimeError: It failed on a rank. What the ranks after it answered is read too: stock leaves that for the
                next call, which would take it for its own.
        """
        if method in _TICK:
            return super().collective_rpc(method, *args, **kwargs)
        self._is_heard = False
        try:
            return super().collective_rpc(method, *args, **kwargs)
        except RuntimeError:
            if not self.is_failed and self.world_size > 1:
                self._discard_unread_answers()
            raise

    def _discard_unread_answers(self) -> None:
        self._num_failed += 1
        mark = f"after failed call {self._num_failed}"
        self.rpc_broadcast_mq.enqueue(("repeat", (mark,), {}, None))
        for answers in self.response_mqs:
            while answers.dequeue() != (WorkerProc.ResponseStatus.SUCCESS, mark):
                pass

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Stock, once every rank knows how the others are."""
        if not self._is_heard:
            if self.world_size > 1:
                report = DrafterReport.of_all(self.collective_rpc("drafter_report"))
                self.collective_rpc("take_report_of_all_ranks", args=(report,))
            self._is_heard = True
        return super().execute_model(*args, **kwargs)
