"""The stock executors, which report what a whole engine did, and need one call per tick fewer."""

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import DraftTokenIds

from efficient_rollout.controller.tick import DrafterReport
from efficient_rollout.engine.record import WorkerReport, record_of, report_on
from efficient_rollout.errors import ConfigError
from efficient_rollout.metrics.rollout_stats import RolloutStats

_TICK = ("execute_model", "sample_tokens")
# What is asked of every rank, and answered by the scheduler too: the call, and whether the answer is taken away.
_STATISTICS = {"take_rollout_stats": True, "rollout_totals": False}
# A rank that has not answered by then has died, or hangs.
_LIMIT_SECONDS = 300.0


class Reporting:
    """Stands before a stock executor among the bases.

    Calls for statistics are answered with the scheduler's half, which is in this process. Drafts come back with the
    sampled tokens: stock asks the worker for them in a second call after every tick, drafts or none, which on a small
    policy costs as much as the tick.
    """

    _report: WorkerReport | None = None

    def _init_executor(self) -> None:
        self._record = record_of(self.vllm_config)
        super()._init_executor()

    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as stock does. Statistics are the whole engine's, on the first rank's answer."""
        answers = super().collective_rpc(method, *args, **kwargs)
        if method in _STATISTICS:
            tally = self._record.tally
            ours = tally.take() if _STATISTICS[method] else tally.total()
            answers[0] = RolloutStats.merge([RolloutStats.from_dict(answers[0]), ours]).to_dict()
        return answers

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run stock; the drafts of the tick before are spent."""
        self._report = None
        return super().execute_model(*args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Run stock; the drafts that came along are kept for `take_draft_token_ids`."""
        output = super().sample_tokens(*args, **kwargs)
        self._report = report_on(output)
        return output

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Return the drafts of the last tick, None where none were asked for; as stock where they are on the device."""
        if self.vllm_config.use_v2_model_runner:
            return super().take_draft_token_ids()
        return None if self._report is None else self._report.drafts


class InProcessExecutor(Reporting, UniProcExecutor):
    """Runs one worker, in the engine's own process."""

    def _init_executor(self) -> None:
        if self.parallel_config.world_size > 1:
            # Stock would start the first worker alone, which waits for the others without end.
            raise ConfigError(
                f"this engine has {self.parallel_config.world_size} workers and an executor for one: give engine_args "
                "the engine's own tensor_parallel_size, so that it chooses the executor for several"
            )
        super()._init_executor()


class OfRanks(Reporting):
    """Stands before a stock executor of several processes, one for each worker, among the bases.

    Only the first rank answers a tick. What a call between ticks left behind, on whichever rank, a weight sync that
    failed there for one, is made known to every rank before the next.
    """

    _is_heard = False
    _num_failed = 0

    if TYPE_CHECKING:
        is_failed: bool
        rpc_broadcast_mq: Any
        response_mqs: list[Any]
        world_size: int

    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as stock does; what the call does to a rank is asked before the next tick.

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
        deadline = time.monotonic() + _LIMIT_SECONDS
        for rank, answers in enumerate(self.response_mqs):
            answer = None
            while answer != (WorkerProc.ResponseStatus.SUCCESS, mark):
                try:
                    answer = answers.dequeue(timeout=max(0.0, deadline - time.monotonic()))
                except TimeoutError as error:
                    raise TimeoutError(
                        f"worker {rank} has not answered for {_LIMIT_SECONDS:.0f} s after a call that failed: it has "
                        "died, or hangs. End the engine; the log of that worker says why."
                    ) from error

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run stock, once every rank knows how the others are."""
        if not self._is_heard:
            if self.world_size > 1:
                report = DrafterReport.of_all(self.collective_rpc("drafter_report"))
                self.collective_rpc("take_report_of_all_ranks", args=(report,))
            self._is_heard = True
        return super().execute_model(*args, **kwargs)


class EfficientExecutor(OfRanks, MultiprocExecutor):
    """Runs every worker in a process of its own, on this machine."""
