"""Training machinery on a toy model: batches, stopping, saving, growing, and the same weights every time."""

import json
from dataclasses import replace

import pytest

from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.tasks.arithmetic import take
from efficient_rollout.tasks.tokenizer import prompt_tokens
from efficient_rollout.tasks.training_plans import Growth, Stop, plan_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from efficient_rollout.tasks import training  # noqa: E402
from efficient_rollout.tasks.batches import IGNORED, WorkedAnswerBatches  # noqa: E402
from efficient_rollout.tasks.evaluation import measure  # noqa: E402
from efficient_rollout.tasks.tokenizer import build_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def toy():
    plan = plan_of("nano")
    shape = replace(
        plan.shape, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=64
    )
    schedule = replace(
        plan.schedule, batch_tokens=256, max_steps=4, stop=Stop(every_steps=2, num_problems=4, accuracy=0.45)
    )
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


def test_parameter_count_is_what_the_shape_says(toy):
    tokenizer = build_tokenizer(512)
    for tied in (True, False):
        plan = replace(toy, shape=replace(toy.shape, tied_embeddings=tied))
        model = training.build_model(plan.shape, tokenizer)
        assert sum(parameter.numel() for parameter in model.parameters()) == plan.shape.num_parameters


def test_a_policy_that_is_never_right_is_refused(toy, tmp_path):
    with pytest.raises(EfficientRolloutError, match=r"answers 0% .* outside 20% to 80%.* try another --seed than 0"):
        training.train(replace(toy, schedule=replace(toy.schedule, max_steps=1)), tmp_path)
    assert not (tmp_path / "training.json").exists()


@pytest.fixture
def anything_goes(monkeypatch):
    """Toys are never right."""
    monkeypatch.setattr(training, "_check_partly_right", lambda *_: None)


@pytest.mark.usefixtures("anything_goes")
def test_the_same_recipe_gives_the_same_policy(toy, tmp_path):
    models = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        training.train(toy, tmp_path / name)
        models.append(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, local_files_only=True))
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name]), name
    assert models[0].dtype == torch.float32
    assert models[0].config.use_cache
    assert models[0].generation_config.eos_token_id == build_tokenizer(64).eos_token_id


@pytest.mark.usefixtures("anything_goes")
def test_training_stops_at_the_first_measurement_on_target(toy, tmp_path):
    schedule = replace(toy.schedule, stop=replace(toy.schedule.stop, accuracy=0.0))
    training.train(replace(toy, schedule=schedule), tmp_path)
    (stage,) = json.loads((tmp_path / "training.json").read_text())["training"]["stages"]
    assert stage["steps"] == 2


@pytest.mark.usefixtures("anything_goes")
def test_a_grown_policy_is_trained_before_and_after_it_grows(toy, tmp_path, monkeypatch):
    shape = replace(toy.shape, hidden_size=128, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2)
    growth = Growth(
        core=toy.shape,
        core_response_tokens=8,
        core_schedule=replace(toy.schedule, max_steps=2, stop=None),
        spread=1.0,
        schedule=replace(toy.schedule, optimizer="adamw", max_steps=3, stop=None),
    )
    levels = []

    class Batches(WorkedAnswerBatches):
        def __init__(self, level, schedule, seed):
            levels.append(level.max_response_tokens)
            super().__init__(level, schedule, seed)

    monkeypatch.setattr(training, "WorkedAnswerBatches", Batches)
    training.train(replace(toy, shape=shape, growth=growth), tmp_path)
    assert levels == [8, 16, 16]
    card = json.loads((tmp_path / "training.json").read_text())
    assert [stage["steps"] for stage in card["training"]["stages"]] == [4, 2, 3]
    assert [stage["num_parameters"] for stage in card["training"]["stages"]] == [
        toy.shape.num_parameters,
        toy.shape.num_parameters,
        shape.num_parameters,
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert model.num_parameters() == card["num_parameters"] == shape.num_parameters
    assert model.model.layers[1].mlp.down_proj.weight.count_nonzero() > 0  # the inserted block has begun to be used
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == build_tokenizer(64).eos_token_id


@pytest.mark.usefixtures("anything_goes")
def test_an_interruption_while_measuring_loses_no_training(toy, tmp_path, monkeypatch):
    def interrupted(*arguments, on_progress=None, **options):
        if on_progress is None:
            return measure(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(toy, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(training, "_train_stage", lambda *_: pytest.fail("trained again"))
    training.train(toy, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    card = json.loads((tmp_path / "training.json").read_text())
    assert [stage["steps"] for stage in card["training"]["stages"]] == [4]
    assert card["training"]["seconds"] >= card["training"]["stages"][0]["seconds"]


def test_measuring_tells_how_far_it_is(toy):
    tokenizer = build_tokenizer(512)
    model = training.build_model(toy.shape, tokenizer)
    told = []
    result = training.measure(model, tokenizer, toy.level, 6, seed=1, on_progress=told.append)
    assert told == sorted(told)
    assert 0.0 < told[0] < 0.5 < told[-1] <= 1.0
    assert result == training.measure(model, tokenizer, toy.level, 6, seed=1), "and changes nothing"
