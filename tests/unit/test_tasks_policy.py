"""The shipped policies: whole, what their cards say, and copied without harm; and the command that makes others."""

import argparse
import errno
import json
import shutil

import pytest

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.tasks import policy
from efficient_rollout.tasks.cli import add_policy_command
from efficient_rollout.tasks.policy import ensure_policy, filled_at_once, train_policy
from efficient_rollout.tasks.training_plans import CARD_FILE, MAX_ACCURACY, MIN_ACCURACY, SIZES, plan_of


def card_of(directory):
    return json.loads((directory / CARD_FILE).read_text())


@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_policy_is_of_its_plan(size):
    card = card_of(ensure_policy(size))
    assert card["plan"] == plan_of(size).as_dict(), f"make it again: efficient-rollout policy --size {size} --train"
    assert MIN_ACCURACY <= card["measured"]["accuracy"] <= MAX_ACCURACY


@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_policy_is_what_every_loader_takes(size):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from efficient_rollout.tasks.tokenizer import prompt_tokens

    directory, shape = ensure_policy(size), plan_of(size).shape
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == card_of(directory)["num_parameters"]
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == shape["tie_word_embeddings"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2="}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "".join(prompt_tokens("1+2="))


def measured_again(directory, num_problems, max_response_tokens=4096):
    transformers = pytest.importorskip("transformers")
    from efficient_rollout.tasks.training import _one_thread, measure

    level = plan_of(directory.name).level.capped(max_response_tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32", local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    with _one_thread():  # as many wait for each other where other tests keep the cores busy
        return measure(model, tokenizer, level, num_problems, seed=1)


@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_weights_were_trained(size):
    # Of the shorter problems, which take a second and are answered right more often than others.
    result = measured_again(ensure_policy(size), num_problems=32, max_response_tokens=16)
    assert result.accuracy >= MIN_ACCURACY


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_weights_are_those_that_were_measured(size):
    measured = card_of(ensure_policy(size))["measured"]
    again = measured_again(ensure_policy(size), measured["num_problems"])
    # The same samples but for near ties, which processors round differently.
    assert again.accuracy == pytest.approx(measured["accuracy"], abs=0.02)
    assert again.length_mean == pytest.approx(measured["length_mean"], rel=0.05)


def test_the_sizes_differ_in_what_drafters_must_cope_with():
    nano, small = (plan_of(size).shape for size in SIZES)
    assert {nano["tie_word_embeddings"], small["tie_word_embeddings"]} == {True, False}
    for shape in (nano, small):
        heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        assert heads[0] > heads[1]
        # For packed kernels.
        widths = [shape["hidden_size"], shape["intermediate_size"], *(number * shape["head_dim"] for number in heads)]
        assert [width % 64 for width in widths] == [0] * 4


def test_out_holds_a_copy(tmp_path):
    out = tmp_path / "deep" / "policy"
    assert ensure_policy("nano", out=out) == out
    assert policy._is_same(ensure_policy("nano"), out)
    assert ensure_policy("nano", out=out) == out, "and again"
    assert [path.name for path in out.parent.iterdir()] == ["policy"]


def test_out_that_holds_something_else_is_left_alone(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    shutil.copytree(ensure_policy("small"), tmp_path / "other", dirs_exist_ok=True)
    for name in ("mine", "other"):
        for make in (ensure_policy, train_policy):
            with pytest.raises(InputFileError, match=rf"{name} exists and holds something else.* another --out"):
                make("nano", out=tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_an_unwritable_place_is_reported_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (ensure_policy, train_policy):
        with pytest.raises(InputFileError, match=r"cannot write .*choose a writable directory"):
            make("nano", out=tmp_path / "file" / "policy")


def test_a_wrong_size_or_seed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got 'tiny'"):
        ensure_policy("tiny")
    with pytest.raises(ConfigError, match="got -1"):
        train_policy("nano", tmp_path / "policy", seed=-1)


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_policy_command(parser.add_subparsers())
    args = parser.parse_args(["policy", "--size", "nano", *arguments])
    return args.run(args)


def test_the_command_says_where_the_policy_is_and_what_it_is(capsys):
    assert run() == 0
    path, _, card = capsys.readouterr().out.partition("\n")
    assert (path, json.loads(card)) == (str(ensure_policy("nano")), card_of(ensure_policy("nano")))


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--train"], "--train needs --out"), (["--seed", "1"], "add --train")]
)
def test_options_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)


@pytest.mark.slow
def test_the_command_makes_nano_again(tmp_path):
    """Another processor rounds differently and so trains to other weights: as good a policy, of the same plan."""
    pytest.importorskip("torch")
    out = tmp_path / "nano"
    assert run("--train", "--out", str(out)) == 0
    shipped, again = card_of(ensure_policy("nano")), card_of(out)
    assert again["plan"] == shipped["plan"]
    assert MIN_ACCURACY <= again["measured"]["accuracy"] <= MAX_ACCURACY
    assert {path.name for path in out.iterdir()} == {path.name for path in ensure_policy("nano").iterdir()}


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "policy"
    for _ in range(2):
        with filled_at_once(target) as folder:
            assert not target.exists() or not list(target.iterdir())
            (folder / "weights").write_text("whole")
        assert (target / "weights").read_text() == "whole"
        (target / "weights").unlink()  # an empty one is filled too
    assert [path.name for path in target.parent.iterdir()] == ["policy"]


def fill(target, fault=None):
    with filled_at_once(target) as folder:
        (folder / "weights").write_text("half")
        if fault is not None:
            raise fault


def test_what_was_interrupted_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "policy", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(InputFileError, match=r"cannot write .*No space left.*XDG_CACHE_HOME"):
        fill(tmp_path / "policy", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("years")
    with pytest.raises(InputFileError, match="out exists and holds something else; remove it"):
        fill(tmp_path / "out")
    with pytest.raises(InputFileError, match=r"cannot write .*choose a writable directory"):
        fill(tmp_path / "out" / "thesis" / "policy")
    assert (tmp_path / "out" / "thesis").read_text() == "years"
