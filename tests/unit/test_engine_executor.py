"""A worker that answers no more is named after a while, and not waited for without end."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.executor.multiproc_executor import WorkerProc

from efficient_rollout.engine.executor import EfficientExecutor, InProcessExecutor
from efficient_rollout.errors import ConfigError


class Answers:
    """A rank's queue of answers; an empty one is that of a rank that died."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)

    def dequeue(self, timeout: float) -> tuple[WorkerProc.ResponseStatus, str]:
        if not self._answers:
            assert timeout <= 300.0
            raise TimeoutError
        return WorkerProc.ResponseStatus.SUCCESS, self._answers.pop(0)


def executor(*queues: Answers) -> EfficientExecutor:
    made = object.__new__(EfficientExecutor)
    made.rpc_broadcast_mq = SimpleNamespace(enqueue=lambda _: None)
    made.response_mqs = list(queues)
    return made


def test_answers_to_a_failed_call_are_read_up_to_the_mark():
    of_ranks = Answers("after failed call 1"), Answers("late", "after failed call 1", "the next call's")
    executor(*of_ranks)._discard_unread_answers()
    assert of_ranks[1]._answers == ["the next call's"]


def test_a_rank_that_has_died_is_named():
    with pytest.raises(TimeoutError, match=r"worker 1 has not answered for 300 s.*has died, or hangs"):
        executor(Answers("after failed call 1"), Answers("late"))._discard_unread_answers()


def test_an_executor_for_one_worker_refuses_several():
    made = object.__new__(InProcessExecutor)
    made.parallel_config = SimpleNamespace(world_size=2)
    with pytest.raises(ConfigError, match=r"2 workers and an executor for one: .*tensor_parallel_size"):
        made._init_executor()
