"""veRL's server adapter, with a weight-transfer socket that no other job on the host shares."""

import os
from typing import Any

import ray
from verl.workers.rollout.vllm_rollout import ServerAdapter

_JOB_ID_VARIABLE = "VERL_RAY_JOB_ID"


def unique_job_id() -> str:
    """Ray's job id, with the node's.

    Job ids count from 1 in every Ray cluster, so two clusters on one host would share a socket by job id alone.
    """
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:12]}"


def announce_job_id() -> None:
    """Tell the engine workers that this process starts, through veRL's own variable."""
    os.environ[_JOB_ID_VARIABLE] = unique_job_id()


class EfficientServerAdapter(ServerAdapter):
    """The trainer's end of the weight transfer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        job_id = ray.get_runtime_context().get_job_id()
        self.zmq_handle = self.zmq_handle.replace(f"-{job_id}-", f"-{unique_job_id()}-", 1)
