"""Each rank of each data-parallel engine asks its own sender for weights, on a CPU and on a GPU."""

import types

import pytest

pytest.importorskip("verl")

from efficient_rollout.errors import UnsupportedVersionError
from efficient_rollout.verl_plugin.adapter import on_this_node
from efficient_rollout.verl_plugin.worker_extension import EfficientWorkerExtension


@pytest.mark.parametrize("is_gpu", [False, True])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_every_worker_has_a_socket_of_its_own(is_gpu, tensor_parallel_size):
    handles = []
    for engine in range(2):
        for rank in range(tensor_parallel_size):
            # As vLLM tells engines of a dense policy; a GPU's worker adds its engine's offset in `init_device`.
            parallel = types.SimpleNamespace(
                data_parallel_size=1, data_parallel_size_local=1, data_parallel_rank=0, data_parallel_index=engine,
                data_parallel_rank_local=engine, tensor_parallel_size=tensor_parallel_size,
            )  # fmt: skip
            worker = object.__new__(EfficientWorkerExtension)
            local_rank = rank + engine * tensor_parallel_size * is_gpu
            runner = types.SimpleNamespace(vllm_config=types.SimpleNamespace(parallel_config=parallel))
            worker.__dict__.update(local_rank=local_rank, model_runner=runner)
            handles.append(worker._get_zmq_handle())
            assert worker.local_rank == local_rank
    assert [handle.rpartition("-rank-")[2] for handle in handles] == [f"{n}.sock" for n in range(len(handles))]


def test_a_socket_s_name_gets_the_node_s_id():
    handle = "ipc:///tmp/rl-colocate-zmq-0100-replica-0-rank-1.sock"
    assert on_this_node(handle, "0100", "0100-ab") == "ipc:///tmp/rl-colocate-zmq-0100-ab-replica-0-rank-1.sock"


@pytest.mark.parametrize("handle", ["ipc:///tmp/zmq-replica-0-rank-1.sock", "ipc:///tmp/zmq-0100-of-0100-rank-1.sock"])
def test_a_socket_named_otherwise_is_an_error_with_both_names(handle):
    with pytest.raises(UnsupportedVersionError, match=rf"{handle}.*0100"):
        on_this_node(handle, "0100", "0100-ab")
