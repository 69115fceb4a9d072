"""A program: sample with an engine of some ranks, in Triton's interpreter, and write what was sampled.

    python triton_ranks.py POLICY RANKS SCHEME [FAULT]    no drafting where the scheme is "none"

FAULT is what happens to the drafter of the last rank alone: "product" raises in a chain, "loss" turns it off. "graphs"
is none: there both ranks capture their draft steps first, and replay them.

The processes of an engine's ranks run this file's imports too, so that each has the interpreter before vLLM.
"""

import interpreter  # noqa: F401, I001 - first: vLLM looks for Triton once
import json
import sys

import interpreted
import pytest
from recorded_graphs import capture_draft_steps, record_graphs
from vllm import SamplingParams

from efficient_rollout.config import Settings


class FaultyWorker(interpreted.InterpretedWorker):
    """Its drafter can be broken on one rank."""

    def break_drafter(self, rank: int, fault: str) -> None:
        """On that rank alone, as `FAULT` says."""
        if self.rank != rank:
            return
        if fault == "loss":
            self.health.turn_off_drafter("its weights were lost")
        else:
            next(iter(self.self_drafter.packed.layers.values()))._multiply = self._fail

    def capture_graphs(self) -> None:
        """Record them, with the ranks' collectives among the operators."""
        self.graphs = record_graphs(pytest.MonkeyPatch())
        capture_draft_steps(self, (1, 2, 4))

    def plugin_status(self) -> dict:
        """And what became of the graphs."""
        graphs = getattr(self, "graphs", None)
        if graphs is None:
            return super().plugin_status()
        collectives = {name for graph in graphs.recorded for name in graph.operators if "all_gather" in name}
        return super().plugin_status() | {
            "num_replays": sum(graph.num_replays for graph in graphs.recorded),
            "wrong": [*graphs.host_reads, *["outside"] * graphs.num_outside],
            "collectives": sorted(collectives),
        }

    def _fail(self, _rows: object) -> None:
        raise RuntimeError("no more products")


def main(policy: str, ranks: int, scheme: str, fault: str | None = None) -> None:
    """Write one line of JSON: token ids by request, and each rank's status."""
    settings = None
    if scheme != "none":
        # Ranks that looked copies up must run as many passes as each other, whatever stood.
        drafter = {"scheme": scheme, "group_size": 128, "lookup": "own" if scheme == "unquantized" else "off"}
        settings = Settings.parse({"drafter": drafter, "controller": {"rule": "always", "max_draft_tokens": 3}})
    options = {} if fault is None else {"worker_cls": f"{__name__}.FaultyWorker"}
    engine = interpreted.engine(policy, settings, tensor_parallel_size=ranks, **options)
    parameters = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=16, ignore_eos=True, detokenize=False)
        for seed, temperature in enumerate((0.0, 1.0, 1.0, 0.7))
    ]
    prompts = [{"prompt_token_ids": [(7 * number + place) % 64 for place in range(9)]} for number in range(4)]
    if fault is not None:
        engine.generate(prompts[:1], parameters[:1], use_tqdm=False)
        engine.collective_rpc("take_rollout_stats")
        if fault == "graphs":
            engine.collective_rpc("capture_graphs")
        else:
            engine.collective_rpc("break_drafter", args=(ranks - 1, fault))
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    statuses = [] if settings is None else engine.collective_rpc("plugin_status")
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    sys.stdout.write(json.dumps({"tokens": tokens, "statuses": statuses}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
