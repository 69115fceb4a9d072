"""Step "sync": new weights reach policy and drafter where they lie, as if the engine had started with them."""

import torch

from efficient_rollout.gpu_check.answers import ask, compare, drafted_and_accepted, questions
from efficient_rollout.gpu_check.policies import make_policy
from efficient_rollout.gpu_check.samples import EVERY_LENGTH, MOST_DRAFTS
from efficient_rollout.gpu_check.stand import Measured, Stand, drafting, require, runnable_schemes, worker_of
from efficient_rollout.gpu_check.weights import addresses_of, digests_of


def check_sync(stand: Stand) -> Measured:
    """Check with graphs on a GPU: they read what lies at the addresses they were captured with."""
    policy, other = (make_policy(stand.folder, name, stand.sizes) for name in ("qwen3", "qwen3-other"))
    scheme, asked = runnable_schemes()[0], questions(stand, 1.0)
    options = {"enforce_eager": not stand.is_gpu}
    with stand.engine(other, drafting(scheme, MOST_DRAFTS), **options) as engine:
        expected = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH, tells_logprobs=True)
        fresh = digests_of(worker_of(engine).self_drafter.packed.layers)
    with stand.engine(policy, drafting(scheme, MOST_DRAFTS), **options) as engine:
        worker = worker_of(engine)
        layers = worker.self_drafter.packed.layers
        ask(engine, asked, 2, drafts=EVERY_LENGTH)
        own, before = digests_of(layers), addresses_of(layers) | _parameters(worker)
        require(
            own != fresh, "packed bytes", where="before the sync", expected="the first policy's", found="the other's"
        )
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
        moved = [
            name for name, address in (addresses_of(layers) | _parameters(worker)).items() if before[name] != address
        ]
        require(not moved, "tensors that moved", where="after the sync", expected="none", found=moved)
        found = digests_of(layers)
        wrong = [name for name in fresh if found.get(name) != fresh[name]]
        require(
            not wrong, "packed bytes", where="after the sync", expected="a fresh engine's", found=f"others in {wrong}"
        )
        drafted_and_accepted(engine)
        answers = ask(engine, asked, stand.sizes.num_tokens, drafts=EVERY_LENGTH)
        measured = compare(stand, "after the sync", asked, expected, answers)
        drafted, accepted = drafted_and_accepted(engine)
        require(sum(accepted) > 0, "accepted drafts", where="after the sync", expected="some", found=drafted)
    return {"equal_layers": len(fresh), "addresses": len(before), **measured}


def _parameters(worker: object) -> dict[str, int]:
    """Return where the policy's parameters lie."""
    model: torch.nn.Module = worker.model_runner.get_model()  # type: ignore[attr-defined]
    return {f"policy.{name}": parameter.data_ptr() for name, parameter in model.named_parameters()}
