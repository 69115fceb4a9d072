"""The policy cache: keyed by plan, atomic, shared safely, and clear about bad directories."""

import json
import multiprocessing
import shutil
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.tasks import policy, training_plans
from efficient_rollout.tasks.policy import ensure_policy, is_finished
from efficient_rollout.tasks.training_plans import SIZES, plan_of


def _write_fake_policy(plan, work_dir):
    for name in policy._FILES:
        (work_dir / name).write_text("{}")
    (work_dir / training_plans.CARD_FILE).write_text(json.dumps({"plan": plan.as_dict()}))


class _FakeTraining(ModuleType):
    """Stands in for the training module; counts its runs and can be interrupted half-way."""

    def __init__(self):
        super().__init__("efficient_rollout.tasks.training")
        self.num_runs = 0
        self.interrupt = False
        self.found = []

    def train(self, plan, work_dir):
        self.num_runs += 1
        self.found = sorted(path.name for path in work_dir.iterdir())
        (work_dir / "model.safetensors").write_text("half")
        if self.interrupt:
            raise KeyboardInterrupt
        _write_fake_policy(plan, work_dir)


@pytest.fixture
def training(monkeypatch):
    fake = _FakeTraining()
    monkeypatch.setitem(sys.modules, "efficient_rollout.tasks.training", fake)
    return fake


def test_every_recipe_has_its_own_key():
    keys = {plan_of(size, seed=seed, tied=tied).key for size in SIZES for seed in (0, 1) for tied in (True, False)}
    assert len(keys) == len(SIZES) * 4
    assert plan_of("nano").key == plan_of("nano").key


def test_the_key_follows_generator_tokenizer_and_transformers(monkeypatch):
    keys = [plan_of("nano").key]
    for name, value in (("GENERATOR_VERSION", 99), ("CHAT_TEMPLATE", "other"), ("version", lambda _: "0.0")):
        monkeypatch.setattr(training_plans, name, value)
        keys.append(plan_of("nano").key)
    assert len(set(keys)) == 4


def test_sizes_keep_what_the_commands_promise():
    nano, small, bench = (plan_of(size).shape for size in SIZES)
    assert 1e6 <= nano.num_parameters <= 2e6 < small.num_parameters
    assert bench.num_parameters >= 100e6
    assert {nano.tied_embeddings, small.tied_embeddings} == {True, False}
    assert all(shape.num_kv_heads < shape.num_heads for shape in (nano, small, bench))
    assert plan_of("nano", tied=False).shape.num_parameters - nano.num_parameters == 128 * nano.hidden_size


def test_a_dimension_packed_kernels_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="hidden_size must be a multiple of 64, got 100"):
        replace(plan_of("nano").shape, hidden_size=100)


def test_a_finished_policy_is_reused(training, tmp_path):
    first = ensure_policy("nano", cache_dir=tmp_path)
    assert ensure_policy("nano", cache_dir=tmp_path) == first == tmp_path / plan_of("nano").key
    assert training.num_runs == 1
    assert ensure_policy("nano", seed=1, cache_dir=tmp_path) != first
    assert training.num_runs == 2


def test_an_interrupted_policy_is_never_taken_for_finished(training, tmp_path):
    training.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        ensure_policy("nano", cache_dir=tmp_path)
    assert not (tmp_path / plan_of("nano").key).exists()
    training.interrupt = False
    assert is_finished(ensure_policy("nano", cache_dir=tmp_path), plan_of("nano"))
    assert training.num_runs == 2
    assert training.found == []


@pytest.mark.parametrize(("seed", "is_kept"), [(0, True), (1, False)])
def test_weights_that_were_trained_and_not_yet_measured_are_taken_up(seed, is_kept, training, tmp_path):
    partial = tmp_path / f"{plan_of('nano').key}.partial"
    partial.mkdir()
    (partial / training_plans.TRAINED_FILE).write_text(json.dumps({"plan": plan_of("nano", seed=seed).as_dict()}))
    directory = ensure_policy("nano", cache_dir=tmp_path)
    assert training.found == ([training_plans.TRAINED_FILE] if is_kept else [])
    assert not (directory / training_plans.TRAINED_FILE).exists()


@pytest.mark.parametrize("damage", ["model.safetensors", training_plans.CARD_FILE])
def test_a_damaged_policy_is_made_again(training, tmp_path, damage):
    (ensure_policy("nano", cache_dir=tmp_path) / damage).unlink()
    assert is_finished(ensure_policy("nano", cache_dir=tmp_path), plan_of("nano"))
    assert training.num_runs == 2


@pytest.mark.usefixtures("training")
def test_out_holds_a_copy_that_outlives_the_cache(tmp_path):
    out = tmp_path / "deep" / "policy"
    assert ensure_policy("nano", out=out, cache_dir=tmp_path / "cache") == out
    shutil.rmtree(tmp_path / "cache")
    assert is_finished(out, plan_of("nano"))
    assert ensure_policy("nano", out=out, cache_dir=tmp_path / "cache") == out
    assert [path.name for path in out.parent.iterdir()] == ["policy"]


def test_out_that_holds_something_else_is_left_alone(training, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputFileError, match=r"mine exists and is not .* choose another --out"):
        ensure_policy("nano", out=tmp_path / "mine", cache_dir=tmp_path / "cache")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    assert training.num_runs == 0


def test_an_unwritable_place_is_reported_before_training(training, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in ({"out": tmp_path / "file" / "policy"}, {"cache_dir": tmp_path / "file" / "cache"}):
        with pytest.raises(InputFileError, match=r"cannot write .*choose a writable directory"):
            ensure_policy("nano", **{"cache_dir": tmp_path / "cache", **arguments})
    assert training.num_runs == 0


def test_a_full_disk_is_reported_before_training(training, tmp_path, monkeypatch):
    monkeypatch.setattr(policy.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(InputFileError, match="0 MiB free, the policy needs 6 MiB"):
        ensure_policy("nano", cache_dir=tmp_path)
    assert training.num_runs == 0


@pytest.mark.parametrize(("arguments", "message"), [(("tiny", 0), "got 'tiny'"), (("nano", -1), "got -1")])
def test_a_wrong_size_or_seed_is_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        ensure_policy(arguments[0], seed=arguments[1], cache_dir=tmp_path)


def _make_slowly(cache_dir, runs_file):
    def train(plan, work_dir):
        with runs_file.open("a") as runs:
            runs.write("run\n")
        time.sleep(0.5)
        _write_fake_policy(plan, work_dir)

    fake = ModuleType("efficient_rollout.tasks.training")
    fake.train = train
    sys.modules[fake.__name__] = fake
    ensure_policy("nano", cache_dir=cache_dir)


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, tmp_path / "runs")
    processes = [context.Process(target=_make_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "runs").read_text() == "run\n"
