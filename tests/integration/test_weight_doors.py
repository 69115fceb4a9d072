"""A weight sync that is not a whole policy's is an error that names the tensor, and the next whole one mends all."""

import asyncio
import importlib.util
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import engine_support
import file_transfer
import pytest
import torch
import weight_support
from safetensors.torch import load_file, save_file
from weight_support import DOORS, fingerprints, logprobs, status, sync

from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

HAS_VERL = importlib.util.find_spec("verl") is not None
VERL_EXTENSION = "efficient_rollout.verl_plugin.worker_extension.EfficientWorkerExtension"
VERL_BUCKET_BYTES = 140_000  # a little more than the largest tensor
SETTINGS = {"drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
Q, K, V = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")
NORM, DOWN, EMBEDDING = (
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)


@dataclass(frozen=True)
class Damage:
    """What changes a checkpoint's tensors by name, and a regular expression of what the error must say."""

    change: Callable[[dict[str, torch.Tensor]], object]
    told: str


def with_value(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[5:6].fill_(value)


DAMAGES = {
    "a missing tensor": Damage(lambda t: t.pop(NORM), rf"1 of the policy's \d+ parameters .*: {NORM}"),
    "a missing part of a fused layer": Damage(
        lambda t: t.pop(K), rf"1\.self_attn\.qkv_proj\.weight \(only 24576 of its 32768 values came, with {Q}, {V}\)"
    ),
    "a shape too small": Damage(
        lambda t: t.update({Q: t[Q][:64].clone()}),
        rf"{Q} \[64, 128\] was not taken for part 'q' of .*qkv_proj\.weight, where \[128, 128\] is expected",
    ),
    "a shape too large": Damage(
        lambda t: t.update({Q: torch.cat([t[Q], t[Q]])}), rf"{Q} \[256, 128\] .* where \[128, 128\] is expected"
    ),
    "another vocabulary": Damage(
        lambda t: t.update({EMBEDDING: t[EMBEDDING][:120].clone()}),
        rf"{EMBEDDING} \[120, 128\] was not taken for .*, where \[128, 128\] is expected",
    ),
    "a value that is no number": Damage(with_value(DOWN, torch.nan), rf"{DOWN} \[128, 256\] .* not finite"),
    "an infinite value": Damage(with_value(EMBEDDING, -torch.inf), rf"{EMBEDDING} \[128, 128\] .* not finite"),
    "an unknown name": Damage(
        lambda t: t.update({Q.replace("q_proj", "r_proj"): t[Q].clone()}), r"model\.layers\.1\.self_attn\.r_proj"
    ),
    "no tensor": Damage(lambda t: t.clear(), r"(0 tensors came|no weights can be read)"),
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return [engine_support.random_policy(folder / str(seed), seed=seed, biases=True, tied=True) for seed in (0, 1)]


@pytest.fixture(scope="module")
def engine(policies, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Part of the name of the socket that veRL's sender and receiver meet at.
        patch.setenv("VERL_RAY_JOB_ID", tmp_path_factory.getbasetemp().name)
        with engine_support.running(
            policies[0],
            SETTINGS,
            worker_cls="scripted_engine.FaultyWorker",
            worker_extension_cls=VERL_EXTENSION if HAS_VERL else "",
            weight_transfer_config={"backend": file_transfer.BACKEND},
        ) as engine:
            yield engine


@pytest.fixture(scope="module")
def fresh(engine):
    """The engine's facts before anything was loaded into it."""
    return logprobs(engine), fingerprints(engine)


@pytest.fixture
def checkpoint(policies, tmp_path):
    """Writes a changed checkpoint of a policy, and more files beside it."""

    def write(policy, change=dict, **others):
        shutil.copy(policies[policy] / "config.json", tmp_path)
        tensors = load_file(policies[policy] / "model.safetensors")
        change(tensors)
        for name, content in {"model": tensors, **others}.items():
            save_file(content, tmp_path / f"{name}.safetensors")
        return tmp_path

    return write


def assert_fresh_after_a_sync(engine, path, fresh, door=weight_support.through_buckets):
    sync(engine, path, door)
    assert status(engine)["weights_fault"] is None
    take_rollout_stats(engine.collective_rpc)
    assert (logprobs(engine), fingerprints(engine)) == fresh
    assert take_rollout_stats(engine.collective_rpc).num_draft_tokens > 0, "drafting must be on again"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_sync_is_told_and_the_next_whole_one_mends_it(engine, policies, fresh, checkpoint, damage, door):
    path, told = checkpoint(1, DAMAGES[damage].change), DAMAGES[damage].told
    before = status(engine)
    with pytest.raises(Exception, match=told):
        DOORS[door](engine, path)
    after = status(engine)
    assert after["weights_version"] == before["weights_version"]
    if "reload" in door and damage == "no tensor":
        assert after == before, "nothing was begun"
    else:
        assert "send every tensor" in after["weights_fault"]
        assert after["drafter_fault"] == after["weights_fault"]
    assert_fresh_after_a_sync(engine, policies[0], fresh, DOORS[door])


def test_from_half_new_weights_nothing_is_generated(engine, policies, fresh, checkpoint):
    def fail_to_sync():
        with pytest.raises(Exception, match="did not get all their values"):
            weight_support.through_buckets(engine, checkpoint(1, DAMAGES["a missing tensor"].change))

    core, finished = engine.llm_engine, {}
    params = engine_support.sampling(max_tokens=60)
    for i, prompt in enumerate(weight_support.PROMPTS):
        core.add_request(str(i), {"prompt_token_ids": prompt}, params)
    for _ in range(4):
        core.step()
    fail_to_sync()
    while core.has_unfinished_requests():
        finished |= {output.request_id: output.outputs[0] for output in core.step() if output.finished}
    assert len(finished) == len(weight_support.PROMPTS)
    assert all(0 < len(output.token_ids) < 60 for output in finished.values()), "of the old policy alone"
    for _ in range(2):
        outputs = engine_support.generate(engine, weight_support.PROMPTS, params)
        finished |= {f"new {i}": output for i, (output,) in enumerate(outputs)}
    assert {output.finish_reason for output in finished.values()} == {"error"}
    assert not any(output.token_ids for name, output in finished.items() if name.startswith("new"))
    # Without a word to the prefix cache: what was refused must not be in it.
    weight_support.through_buckets(engine, policies[0])
    assert logprobs(engine) == fresh[0]


def test_a_tensor_that_comes_twice_does_not_stand_for_another(engine, policies, fresh, checkpoint):
    path = checkpoint(1, lambda tensors: tensors.pop(K), more={V: torch.ones(64, 128)})
    with pytest.raises(
        Exception, match=rf"{V} \[64, 128\] is for values of .*qkv_proj\.weight that {V} brought before"
    ):
        sync(engine, path)
    assert_fresh_after_a_sync(engine, policies[0], fresh)


@pytest.mark.parametrize("door", DOORS)
def test_what_trainers_send_beside_the_parameters_is_no_fault(engine, policies, fresh, checkpoint, door):
    sync(engine, policies[1])
    embedding = load_file(policies[0] / "model.safetensors")[EMBEDDING]
    # The head first, in another bucket than the embedding that it is tied to; buffers of the trainer's last.
    path = checkpoint(
        0,
        head={"lm_head.weight": embedding},
        zzz={
            "model.rotary_emb.inv_freq": torch.ones(16),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        },
    )
    assert_fresh_after_a_sync(engine, path, fresh, DOORS[door])


def test_two_syncs_at_once_are_refused_and_the_first_goes_on(engine, policies, fresh):
    sync(engine, policies[1])
    engine.start_weight_update()
    weight_support.send_chunk(engine, policies[0], 0, 7)
    assert status(engine)["weights_fault"] == "a weight sync began and has not finished"
    for begin in (
        engine.start_weight_update,
        lambda: weight_support.through_reload(engine, policies[1]),
        lambda: weight_support.through_buckets(engine, policies[1]),
    ):
        with pytest.raises(Exception, match=r"another weight sync is open .*abort_weight_sync"):
            begin()
    weight_support.send_chunk(engine, policies[0], 7, None)
    engine.finish_weight_update()
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == fresh


def drop(engine):
    engine.collective_rpc("abort_weight_sync")


def finish_early(engine):
    with pytest.raises(Exception, match=r"7 tensors came, and \d+ of the policy's"):
        engine.finish_weight_update()


@pytest.mark.parametrize("end", [drop, finish_early])
@pytest.mark.parametrize("door", DOORS)
def test_a_sync_whose_sender_is_gone_is_no_end(engine, policies, fresh, end, door):
    engine.start_weight_update()
    weight_support.send_chunk(engine, policies[1], 0, 7)
    end(engine)
    fault = status(engine)["weights_fault"]
    assert "the weight sync failed" in fault
    with pytest.raises(Exception, match="no weight update is open: the weight sync failed"):
        weight_support.send_chunk(engine, policies[1], 7, None)
    assert status(engine)["weights_fault"] == fault
    assert_fresh_after_a_sync(engine, policies[0], fresh, DOORS[door])


def test_closed_doors_say_what_to_use_and_change_nothing(engine, policies, fresh, tmp_path):
    before = status(engine)
    other, nowhere = {"args": (str(policies[1]),)}, {"weights_path": str(tmp_path / "nowhere")}
    for method, given, told in [
        ("load_past_every_door", other, "outside a weight sync.*Use collective_rpc"),
        ("reload_past_every_door", other, "outside a weight sync.*Use collective"),
        ("reload_weights", {"kwargs": {"is_checkpoint_format": False}}, "_format=False.*without that argument"),
        ("start_draft_weight_update", {}, "call start_weight_update, not"),
        ("reset_weights", {}, "reset_weights writes zeroes"),
        ("reload_weights", {"kwargs": nowhere}, "no weights can be read from .*nowhere"),
    ]:
        with pytest.raises(Exception, match=told):
            engine.collective_rpc(method, **given)
    assert status(engine) == before
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == fresh
    assert engine.collective_rpc("supports_draft_weight_updates") == [False]


def test_a_reload_without_a_path_takes_the_checkpoint_loaded_last(engine, policies, fresh, tmp_path):
    weight_support.through_reload(engine, policies[0])
    sync(engine, policies[1])
    with pytest.raises(Exception, match="no weights can be read"):
        weight_support.through_reload(engine, tmp_path / "nowhere")
    engine.collective_rpc("reload_weights")
    engine.reset_prefix_cache()
    assert (logprobs(engine), fingerprints(engine)) == fresh


def test_a_request_that_was_refused_leaves_nothing_in_the_prefix_cache(engine, policies, checkpoint):
    sync(engine, policies[0])
    with pytest.raises(Exception, match="send every tensor"):
        weight_support.through_buckets(engine, checkpoint(0, DAMAGES["a missing tensor"].change))
    assert [one.finish_reason for one in answered(engine)] == ["error"]
    weight_support.through_buckets(engine, policies[0])
    kept = answered(engine)
    engine.reset_prefix_cache()
    assert [one.token_ids for one in kept] == [one.token_ids for one in answered(engine)]


def answered(engine):
    """The response to a prompt that fills blocks of the KV cache."""
    from vllm import SamplingParams

    prompt = [(7 * place) % 128 for place in range(200)]
    return engine_support.generate(engine, [prompt], SamplingParams(temperature=0.0, max_tokens=24, detokenize=False))[
        0
    ]


def through_verl(engine, path, on_the_way=lambda sent: sent, **kwargs):
    """As veRL's trainer does; its sender must end, whatever becomes of the sync."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    from efficient_rollout.verl_plugin.adapter import signed

    sender = BucketedWeightSender(engine.collective_rpc("_get_zmq_handle")[0], bucket_size_mb=1, use_shm=True)
    sender.bucket_size = VERL_BUCKET_BYTES
    weights = on_the_way(signed(file_transfer.tensors(path)))
    sending = threading.Thread(target=lambda: asyncio.run(sender.async_send_weights(weights)), daemon=True)
    with ThreadPoolExecutor(1) as trainer:
        answer = trainer.submit(engine.collective_rpc, "update_weights_from_ipc", kwargs={"use_shm": True, **kwargs})
        sending.start()
        sending.join(timeout=60)
        assert not sending.is_alive(), "veRL's sender waits for an answer that never comes"
        answer.result(timeout=60)


@pytest.mark.skipif(not HAS_VERL, reason="veRL is not installed")
def test_verls_sender_ends_and_its_trainer_is_told(engine, policies, fresh, checkpoint):
    damages = {"an infinite value", "a shape too small", "an unknown name", "a missing tensor"}
    for damage in sorted(damages):
        with pytest.raises(Exception, match=DAMAGES[damage].told):
            through_verl(engine, checkpoint(1, DAMAGES[damage].change))
        assert "send every tensor" in status(engine)["weights_fault"]
        assert_fresh_after_a_sync(engine, policies[0], fresh, through_verl)
    with pytest.raises(Exception, match="do not support LoRA"):
        through_verl(engine, policies[1], peft_config={"r": 8}, base_sync_done=True)
    engine.start_weight_update()
    with pytest.raises(Exception, match="another weight sync is open"):
        through_verl(engine, policies[1])
    engine.collective_rpc("abort_weight_sync")
    assert_fresh_after_a_sync(engine, policies[0], fresh, through_verl)


async def without_a_bucket(sent):
    number = 0
    async for one in sent:
        number += 1
        if not 7 <= number <= 9:
            yield one


async def with_a_row_flipped(sent):
    async for name, tensor in sent:
        yield name, torch.cat([tensor[:5], -tensor[5:6], tensor[6:]]) if name == K else tensor


@pytest.mark.skipif(not HAS_VERL, reason="veRL is not installed")
def test_what_comes_otherwise_than_verls_trainer_sent_it_is_told(engine, policies, fresh):
    for change, told in [(without_a_bucket, r"sent 26 tensors and 23 came"), (with_a_row_flipped, rf"sent: {K}")]:
        with pytest.raises(Exception, match=told):
            through_verl(engine, policies[1], change)
        assert "send every tensor" in status(engine)["weights_fault"]
    assert_fresh_after_a_sync(engine, policies[0], fresh, through_verl)
    through_verl(engine, policies[0])
    assert take_rollout_stats(engine.collective_rpc).is_as_sent == 1


# Last: an engine that ends in this process takes vLLM's groups of ranks along.
def test_a_stock_drafters_own_sync_is_vllms_business(policies):
    engine = engine_support.start(
        policies[0],
        {"enabled": False},
        weight_transfer_config={"backend": file_transfer.BACKEND},
        speculative_config={"method": "draft_model", "model": str(policies[0]), "num_speculative_tokens": 2},
    )
    try:
        before = status(engine)
        engine.collective_rpc("start_draft_weight_update")
        weight_support.send_chunk(engine, policies[1], 0, None)
        engine.finish_weight_update()
        assert status(engine) == before
        weight_support.through_transfer(engine, policies[1])
        assert status(engine)["weights_version"] == before["weights_version"] + 1
    finally:
        engine_support.stop(engine)
