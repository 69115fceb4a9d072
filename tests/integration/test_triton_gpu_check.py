"""The steps of `efficient-rollout gpu-check`, as they run on a GPU, with Triton's interpreter in the GPU's place."""

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import interpreted
import torch
from vllm import LLM
from vllm.config.compilation import CUDAGraphMode

from efficient_rollout.cost_model.profile import load_profile
from efficient_rollout.drafter.cuda import products as gpu_products
from efficient_rollout.engine.gpu.verifier import SharedNoiseVerifier
from efficient_rollout.files import read_json
from efficient_rollout.gpu_check import kernels, products, rollout, samples, steps
from efficient_rollout.gpu_check.samples import Answer, Question, ask
from efficient_rollout.gpu_check.stand import CheckFailed, Sizes, Stand, drafting, end_engine
from efficient_rollout.gpu_check.weights import digest, hard_weight, hashed, make_policy, make_shape, packed_of
from efficient_rollout.measuring import offline, starting
from efficient_rollout.measuring.starting import EngineLimits

# Seconds in the interpreter are those of tokens drawn. Architectures, and every scheme, are tried here alone.
SMALLEST = Sizes(
    hidden_size=128, num_layers=1, vocabulary=96, most_schemes=1, num_requests=2, num_tokens=6,
    max_num_seqs=16, num_samples=12, large_weight=(256, 128),
    trained_policy="nano", num_prompts=2, response_tokens=12,
)  # fmt: skip
MORE = dataclasses.replace(SMALLEST, num_layers=2, most_schemes=3, num_requests=3, num_tokens=12, num_samples=64)


# With the schemas of a CUDA build's operators: a CPU has none. They are there as long as this object is.
STAND_INS = torch.library.Library("gpu_check_stand_ins", "DEF")
for name, arguments in products.OPERATORS.items():
    STAND_INS.define(f"{name}({', '.join(f'Tensor? {argument}' for argument in arguments.split())}) -> ()")


def start(**arguments):
    """An engine of the V2 runner on a CPU, which schedules a tick before the one before it has ended."""
    with interpreted._scheduling(asynchronous=True):
        return LLM(**arguments)


@pytest.fixture(scope="module")
def stand(tmp_path_factory):
    return Stand(
        device="cpu",
        folder=tmp_path_factory.mktemp("gpu_check"),
        dtype="float32",
        sizes=SMALLEST,
        worker="interpreted.InterpretedWorker",
        recording_worker="interpreted.InterpretedRecordingWorker",
        start=start,
        operators=torch.ops.gpu_check_stand_ins,
        shapes=("tiny",),
    )


STEPS = {step.name: step for step in steps.STEPS}
# Two steps are left out: without CUDA graphs `graphs` asks what `same-samples` asks, and a chi-squared test of the few
# samples that the interpreter draws in minutes tells nothing.
WITHOUT_ENGINES, WITH_ENGINES = (
    ("operators", "kernels", "products"),
    ("same-samples", "faults", "sync", "sleep", "acceptance", "latency", "rollout"),
)


def run(stand, name):
    measured = steps.run(stand, name, STEPS[name].function)
    assert read_json(steps.measured_path(stand.folder, name), what="the result") == measured
    return measured


@pytest.mark.parametrize("name", WITHOUT_ENGINES)
def test_a_step_passes(stand, name):
    assert run(stand, name)


# What they ask of the runner, test_triton_engine.py asks too; and that the others notice, tests below.
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ENGINES[:5])
def test_a_step_with_engines_passes(stand, name):
    large = dataclasses.replace(stand, sizes=MORE)
    assert run(large, name)


@pytest.mark.slow
def test_the_quick_step_passes(stand):
    (step,) = (step for step in steps.QUICK_STEPS if step.name == "quick")
    measured = steps.run(dataclasses.replace(stand, sizes=MORE), step.name, step.function)
    assert measured["tokens"] > 4 * MORE.num_requests


@pytest.mark.slow
def test_the_measuring_steps_leave_a_profile_and_the_same_work_of_every_arm(stand):
    accepted, latencies, rollouts = (run(stand, name) for name in WITH_ENGINES[4:])
    (scheme,) = set(accepted) & {"int4", "int8", "fp8"}
    row = latencies[f"tiny-{scheme}"]
    profile = load_profile(rollout.profile_path(stand.folder, "tiny", scheme))
    assert profile.key.scheme == scheme
    assert set(row["batch_1"]["tick_ms"]) == {str(k) for k in range(rollout.MOST_DRAFTS + 1)}
    assert all(milliseconds > 0.0 for milliseconds in row["batch_1"]["tick_ms"].values())
    assert row["requantize_s"] > 0.0
    assert row["drafter_bytes"] > 0
    assert rollouts["stated_acceptance"] == round(accepted[scheme]["acceptance_rate"][0], 4)
    arms = rollouts[f"tiny-{scheme}"]
    assert set(arms) == {"response_tokens", "plain", "always:4", "cost_model"}
    assert len(arms["response_tokens"]) == 2
    assert max(map(int, arms["always:4"]["seconds_by_draft_tokens"][0])) == 4
    assert arms["plain"]["speedup"]["median"] == 1.0


@pytest.mark.slow
def test_noise_of_another_position_is_named(stand, monkeypatch):
    verify = SharedNoiseVerifier._verify

    def displaced(self, logits, draft_logits, draft_sampled, pos, *others, **named):
        return verify(self, logits, draft_logits, draft_sampled, pos + 1, *others, **named)

    policy = make_policy(stand.folder, "qwen3", stand.sizes)
    plain = samples.plain_answers(stand, policy, eager=True)
    monkeypatch.setattr(SharedNoiseVerifier, "_verify", displaced)
    with pytest.raises(CheckFailed, match=r"qwen3.*int4, eager, request \d at temperature 1, .* no rounding"):
        samples.check_drafting(stand, policy, "int4", plain)


def test_an_operator_with_another_argument_is_named(stand, monkeypatch):
    monkeypatch.setitem(products.OPERATORS, "marlin_gemm", "a b c")
    with pytest.raises(CheckFailed, match=r"operator marlin_gemm.*expected a b c, found a c_or_none"):
        products.check_operators(stand)
    assert products.argument_names(torch.ops.gpu_check_stand_ins, "no_such_operator") == []


def test_a_kernel_that_writes_other_bytes_is_named(stand, monkeypatch):
    goldens = read_json(kernels.GOLDENS, what="the digests")
    monkeypatch.setattr(kernels, "digests", lambda _: goldens | {"int8-float16-64x128": "of something else"})
    with pytest.raises(CheckFailed, match=r"packed bytes \(int8-float16-64x128\).*found of something else"):
        kernels.check_kernels(stand)


@pytest.mark.parametrize("scheme", ["int4", "int8", "fp8"])
def test_one_other_byte_is_another_digest(scheme):
    case = kernels.Case(scheme, 128, torch.float16, (64, 128), has_bias=True)
    layer = case.pack("cpu")
    before = digest(layer)
    assert before == digest(case.pack("cpu")) != digest(case.pack("cpu", salt=1))
    next(iter(packed_of(layer).values())).view(torch.uint8)[3, 5] ^= 1
    assert digest(layer) != before


def test_rows_that_depend_on_their_place_in_a_large_weight_are_named(stand, monkeypatch):
    original = kernels.packed_of

    def drifted(layer):
        packed = original(layer)
        if layer.out_features > 128 and "_scales" in packed:
            packed["_scales"][-1] *= 2
        return packed

    monkeypatch.setattr(kernels, "packed_of", drifted)
    with pytest.raises(CheckFailed, match=r"the last 128 outputs.*int8 _scales.*found 1 other numbers"):
        kernels._check_large(stand)


@pytest.mark.parametrize(
    ("scheme", "reference"), [("int8", "multiply_channels_reference"), ("int4", "multiply_int4_reference")]
)
def test_a_product_that_is_off_is_named(stand, monkeypatch, scheme, reference):
    multiply = getattr(gpu_products, reference)

    def off(rows, *arguments):
        product = multiply(rows, *arguments)
        return torch.where(torch.arange(len(product)).unsqueeze(1) == 16, 1.02 * product, product)

    monkeypatch.setattr(gpu_products, reference, off)
    monkeypatch.setattr(products, "runnable_schemes", lambda: [scheme])
    with pytest.raises(CheckFailed, match=rf"a product \({scheme}.*within its rounding"):
        products.check_products(stand)


QUESTIONS = [Question(prompt=(1, 2, 3), seed=7, temperature=temperature) for temperature in (0.0, 1.0)]


def answers_of(stand, question, tokens):
    """What stock would answer from log-probabilities that fall evenly: in greedy answers token 0."""
    logprobs = torch.linspace(0, -1.2, 96).repeat(tokens, 1).log_softmax(-1)
    drawn = [0] * tokens if question.temperature == 0 else samples.redrawn(stand, question, logprobs, range(tokens))
    return Answer(drawn, logprobs)


@pytest.mark.parametrize("question", QUESTIONS, ids=["greedy", "sampled"])
def test_answers_that_part_without_a_tie_are_named(stand, question):
    expected = answers_of(stand, question, 4)
    assert samples.compare(stand, "here", [question], [expected], [expected]) == {"tokens": 4, "ties": 0}
    other = Answer([*expected.tokens[:2], (expected.tokens[2] + 40) % 96, 0], None)
    with pytest.raises(CheckFailed, match=r"tokens \(here, request 0.*token 2\): expected .* no rounding"):
        samples.compare(stand, "here", [question], [expected], [other])


@pytest.mark.parametrize("question", QUESTIONS, ids=["greedy", "sampled"])
def test_answers_that_part_at_a_tie_are_counted_up_to_it(stand, question):
    # 96 even logits are 0.0126 apart; in bfloat16 a quarter is allowed, so a neighbour may win a greedy draw.
    coarse = dataclasses.replace(stand, dtype="bfloat16")
    expected = answers_of(stand, question, 4)
    logprobs = expected.logprobs.clone()
    runner_up = 1
    if question.temperature:
        logprobs[2, expected.tokens[2]] = -1e9
        (runner_up,) = samples.redrawn(stand, question, logprobs[2:3], [2])
        # As near to each other as the noise lets them be: the second is raised until it almost wins.
        expected = Answer(expected.tokens, expected.logprobs.clone())
        while samples.redrawn(stand, question, expected.logprobs[2:3], [2]) == [expected.tokens[2]]:
            expected.logprobs[2, runner_up] += 0.05
        expected.logprobs[2, runner_up] -= 0.05
    found = Answer([*expected.tokens[:2], runner_up, 0], None)
    assert samples.compare(coarse, "here", [question], [expected], [found]) == {"tokens": 2, "ties": 1}


def test_every_batch_without_a_full_graph_is_named(stand):
    class Manager:
        compilation_config = SimpleNamespace(max_cudagraph_capture_size=40)

        def dispatch(self, num_reqs, num_tokens, query_len, *_, max_query_len):
            is_full = num_tokens == num_reqs * query_len and max_query_len == query_len
            is_full = is_full and (num_reqs, query_len) != missing
            return SimpleNamespace(cg_mode=CUDAGraphMode.FULL if is_full else CUDAGraphMode.PIECEWISE)

    missing = None
    assert samples.check_dispatch(Manager(), stand) == 16 + 16 + 13 + 10
    missing = (5, 3)
    with pytest.raises(CheckFailed, match=r"5 requests with 2 drafts.*expected FULL, found PIECEWISE"):
        samples.check_dispatch(Manager(), stand)


def test_the_weights_are_the_same_numbers_in_every_dtype():
    exact = hard_weight((64, 128), torch.float64, "cpu")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(hard_weight((64, 128), dtype, "cpu").double(), exact)
    assert hashed((3,), 0).tolist() == [-102, 80, 49]


def test_the_check_s_own_worker_is_the_product_s_without_a_certificate(tmp_path, monkeypatch):
    from efficient_rollout.config import Settings
    from efficient_rollout.engine.gpu import worker as gpu_worker
    from efficient_rollout.errors import UnsupportedDeviceError
    from efficient_rollout.gpu_check.gpu_worker import UncertifiedGpuWorker

    def refused(*_):
        raise UnsupportedDeviceError("no certificate")

    monkeypatch.setattr(gpu_worker, "this_machine", lambda: None)
    monkeypatch.setattr(gpu_worker, "require_certificate", refused)
    settings = Settings.parse({"gpu_certificate": "required"})
    with pytest.raises(UnsupportedDeviceError):
        gpu_worker.GpuWorker.look_for_certificate(SimpleNamespace(), settings)
    assert UncertifiedGpuWorker.look_for_certificate(SimpleNamespace(), settings) is None
    assert UncertifiedGpuWorker.check is gpu_worker.GpuWorker.check


@pytest.mark.slow
def test_as_many_drafts_are_wrong_as_is_stated_and_no_token_is(stand):
    """And each tick of the V2 runner is recorded: what it verified, and the seconds of its own chain."""
    limits = EngineLimits(max_requests=4, max_context_tokens=48, kv_cache_tokens=4 * 48, dtype="float32")
    policy = str(make_shape(stand.folder, "tiny"))
    engine = stand.start_measured(policy, limits, drafting("int4", 2), spoiled_share=0.5)
    asked = [Question(prompt=(1, 2, 3 + number), seed=number) for number in range(4)]
    try:
        answered, found = [], []
        for share in (0.5, 0.0):
            engine.collective_rpc("spoil_drafts", args=(share,))
            samples.drafted_and_accepted(engine)
            answered.append([answer.tokens for answer in ask(engine, asked, 16, drafts=(1,))])
            drafted, accepted = samples.drafted_and_accepted(engine)
            found.append(accepted[0] / drafted[0])
        offline.take_ticks(engine)
        ask(engine, asked, 8, drafts=(2, 0))
        ticks = offline.take_ticks(engine)
    finally:
        starting.stop(engine)
        end_engine()
    assert answered[0] == answered[1]
    assert 0.25 < found[0] < 0.75
    assert found[1] == 1.0, "random weights agree with their quantized copy"
    assert {tick.num_drafted for tick in ticks} == {0, 2}
    assert all((tick.draft_seconds > 0.0) == (tick.num_drafted > 0) for tick in ticks)
    assert all(tick.num_verified in (0, 2 * tick.num_requests) for tick in ticks)
    assert [tick.had_prefill for tick in ticks[:2]] == [True, False]
