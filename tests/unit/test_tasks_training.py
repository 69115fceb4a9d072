"""Training on a toy model: batches, stopping, what is written, and the same weights every time."""

import json
from dataclasses import replace

import pytest

from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.tasks.arithmetic import take
from efficient_rollout.tasks.tokenizer import prompt_tokens
from efficient_rollout.tasks.training_plans import plan_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from efficient_rollout.tasks import training  # noqa: E402
from efficient_rollout.tasks.tokenizer import build_tokenizer  # noqa: E402
from efficient_rollout.tasks.training import IGNORED, WorkedAnswerBatches, measure  # noqa: E402


@pytest.fixture(scope="module")
def toy():
    plan = plan_of("nano")
    shape = plan.shape | {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64,
    }  # fmt: skip
    schedule = replace(plan.schedule, batch_tokens=256, max_steps=4, measure_steps=2, measure_problems=4)
    return replace(plan, shape=shape, schedule=schedule, level=plan.level.capped(16), final_problems=4)


def test_batches_keep_their_budget_and_train_only_on_the_answer():
    plan = plan_of("small")
    level = plan.level
    batches = WorkedAnswerBatches(level, plan.schedule, seed=0)
    tokenizer = build_tokenizer(512)
    validation = {problem.question for problem in take(level, "validation", 0, 2000)}
    before, after = "".join(prompt_tokens("?")).split("?")
    for index in (0, 7, 239, 1000):
        batch = batches[index]
        assert batch["input_ids"].numel() <= plan.schedule.batch_tokens
        for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = labels != IGNORED
            prompt, response = tokenizer.decode(row[: int(trained.nonzero()[0])]), tokenizer.decode(row[trained])
            question = prompt.removeprefix(before).removesuffix(after)
            assert prompt == "".join(prompt_tokens(question))
            assert question not in validation
            total = sum(int(operand) for operand in question.rstrip("=").split("+"))
            assert response.endswith(f"{total}.{tokenizer.eos_token}")


def test_batches_depend_on_seed_and_index_only():
    plan = plan_of("nano")
    first, again, other = (WorkedAnswerBatches(plan.level, plan.schedule, seed) for seed in (0, 0, 1))
    again[3]
    assert torch.equal(first[250]["input_ids"], again[250]["input_ids"])
    assert not torch.equal(first[250]["input_ids"][0, :9], other[250]["input_ids"][0, :9])


def test_easy_steps_come_first():
    plan = plan_of("small")
    batches = WorkedAnswerBatches(plan.level, plan.schedule, seed=0)
    easy = plan.schedule.easy_steps
    longest = [int((batches[index]["labels"] != IGNORED).sum(1).max()) for index in range(easy - 20, easy + 20)]
    assert max(longest[:20]) <= plan.schedule.easy_response_tokens < max(longest[20:])


def test_a_policy_that_is_never_right_is_refused(toy, tmp_path):
    with pytest.raises(EfficientRolloutError, match=r"answers 0% .* outside 20% to 80%.* try another --seed than 0"):
        training.train(replace(toy, schedule=replace(toy.schedule, max_steps=1)), tmp_path)
    assert not (tmp_path / "training.json").exists()


@pytest.fixture
def anything_goes(monkeypatch):
    """Toys are never right."""
    monkeypatch.setattr(training, "_check_partly_right", lambda *_: None)


@pytest.mark.usefixtures("anything_goes")
def test_the_same_plan_gives_the_same_policy(toy, tmp_path):
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        training.train(toy, tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "again")]
    assert weights[0] == weights[1]
    (tmp_path / "other").mkdir()
    training.train(replace(toy, seed=1), tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights[0]


@pytest.mark.usefixtures("anything_goes")
def test_what_is_measured_is_what_is_written(toy, tmp_path, monkeypatch):
    measured = []

    def remember(model, *arguments, **options):
        measured.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return measure(model, *arguments, **options)

    monkeypatch.setattr(training, "measure", remember)
    training.train(toy, tmp_path)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).state_dict()
    assert measured[-1].keys() == written.keys()
    for name, weight in written.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(measured[-1][name], weight.float()), name


@pytest.mark.usefixtures("anything_goes")
def test_training_stops_at_the_first_measurement_on_target(toy, tmp_path):
    training.train(replace(toy, schedule=replace(toy.schedule, stop_accuracy=0.0)), tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 2
