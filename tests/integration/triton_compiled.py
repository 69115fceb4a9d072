"""A program: draft with an unquantized, compiled drafter that was traced in a GPU worker's order, in the interpreter.

python triton_compiled.py POLICY    writes one line of JSON
"""

import interpreter  # noqa: F401, I001 - first: vLLM looks for Triton once
import json
import os
import sys

os.environ.pop("TORCHDYNAMO_DISABLE")
os.environ["VLLM_DISABLE_COMPILE_CACHE"] = "1"

import interpreted
from engine_support import generate, sampling
from vllm.config import set_current_vllm_config

from efficient_rollout.config import Settings
from efficient_rollout.engine.graph_cache import GRAPH_KEY
from efficient_rollout.gpu_check.stand import worker_of

PROMPTS = [[(7 * number + place) % 96 for place in range(5 + 6 * number)] for number in range(2)]


class ProfilingWorker(interpreted.InterpretedWorker):
    """Runs the model once before the KV cache exists, as a GPU's worker does to measure memory."""

    def determine_available_memory(self):
        """Stock of a CPU, behind stock of a GPU."""
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.profile_run()
        return super().determine_available_memory()


def count_kv_writes(worker):
    """How often a layer of the policy's, and of the drafter's, writes; counted from now on."""
    writes = {"policy": 0, "drafter": 0}

    def counted(of, stock):
        def write(*args, **kwargs):
            writes[of] += 1
            return stock(*args, **kwargs)

        return write

    for name, layer in worker.vllm_config.compilation_config.static_forward_context.items():
        of = "drafter" if name.startswith("draft_model") else "policy"
        layer.impl.do_kv_cache_update = counted(of, layer.impl.do_kv_cache_update)
    return writes


def main(policy):
    """Write what was drafted and accepted."""
    tree = {"drafter": {"scheme": "unquantized"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
    engine = interpreted.engine(
        policy,
        Settings.parse(tree),
        max_num_seqs=2,
        enforce_eager=False,
        worker_cls=f"{__name__}.ProfilingWorker",
        compilation_config={"backend": "eager"},
    )
    worker = worker_of(engine)
    drafter = worker.self_drafter
    writes = count_kv_writes(worker)
    engine.collective_rpc("take_rollout_stats")
    parameters = [sampling(temperature=float(number), seed=number, max_tokens=16) for number in range(2)]
    generate(engine, PROMPTS, parameters)
    (stats,) = engine.collective_rpc("take_rollout_stats")
    inner = drafter.model.model
    found = {
        "fault": worker_of(engine).health.drafter_fault,
        "is_compiled": bool(getattr(inner, "compiled", False)) or getattr(inner, "aot_compiled_fn", None) is not None,
        "is_named": GRAPH_KEY in worker.vllm_config.additional_config,
        "kv_writes": writes,
        "drafted": stats["drafted_per_position"],
        "accepted": stats["accepted_per_position"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
