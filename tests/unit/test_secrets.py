"""Values of secret names are left out, and nothing else is."""

import argparse
import contextlib
import logging
import sys
from importlib.util import find_spec

import pytest

from efficient_rollout import doctor
from efficient_rollout.__main__ import main
from efficient_rollout.doctor import Finding
from efficient_rollout.errors import ConfigError
from efficient_rollout.secrets import (
    LEFT_OUT,
    arguments_without_secrets,
    is_secret,
    text_without_secrets,
    without_secrets,
)

PLANTED = "s3cr3t-Planted"


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "--logger.wandb.key",
        "HF_TOKEN",
        "api_key",
        "apiKey",
        "+trainer.wandb.api-key",
        "db.password",
        "client_secret",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["data.prompt_key", "--data.input_key", "eos_token", "eos_token_id", "max_tokens", "num_draft_tokens", "key.names",
     "tokenizer", "reward_fn_key", "is_correction_level", "loss_agg_mode", "monkey"],
)  # fmt: skip
def test_other_names(name):
    assert not is_secret(name)


def test_arguments_keep_their_names():
    asked = [
        "train",
        "--wandb.key",
        "abc",
        "+a.api_key=abc",
        "--token=abc",
        "--wandb.key",
        "--seed",
        "1",
        "data.prompt_key=p",
    ]
    told = arguments_without_secrets(asked)
    assert told == [
        "train", "--wandb.key", LEFT_OUT, f"+a.api_key={LEFT_OUT}", f"--token={LEFT_OUT}", "--wandb.key", "--seed", "1",
        "data.prompt_key=p",
    ]  # fmt: skip


def test_trees_keep_their_shape():
    tree = {"a": [{"token": "abc", "steps": 3}], "secret": None, "wandb": {"key": "abc", "project": "p"}}
    assert without_secrets(tree) == {
        "a": [{"token": LEFT_OUT, "steps": 3}], "secret": None, "wandb": {"key": LEFT_OUT, "project": "p"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"no trainer.wandb_api_key={PLANTED} here", f"no trainer.wandb_api_key={LEFT_OUT} here"),
        (f"a.token='{PLANTED} x', b=1", f"a.token={LEFT_OUT}, b=1"),
        (f"a.key={PLANTED},{PLANTED}2 b", f"a.key={LEFT_OUT} b"),
        (f"unrecognized arguments: --wandb.key {PLANTED} --seed 1",
         f"unrecognized arguments: --wandb.key {LEFT_OUT} --seed 1"),
        (f"{{'api_key': '{PLANTED}', 'n': 1}}", f"{{'api_key': {LEFT_OUT}, 'n': 1}}"),
        (f"+a={{api_key:{PLANTED},n:1}}", f"+a={{api_key:{LEFT_OUT},n:1}}"),
        (f"wandb:\n  key: {PLANTED}\n  project: p", f"wandb:\n  key: {LEFT_OUT}\n  project: p"),
        (f"redis://:{PLANTED}@host:6379 is down", f"redis://:{LEFT_OUT}@host:6379 is down"),
        (f"https://me:{PLANTED}@host/a?token={PLANTED}&b=1", f"https://me:{LEFT_OUT}@host/a?token={LEFT_OUT}&b=1"),
        ("a key: unknown; token=null, --data.input_key p, see http://host:80/a@b", None),
        ("data.prompt_key=p, the key: b, --key", None),
    ],
)  # fmt: skip
def test_texts_keep_all_but_secrets(text, told):
    told = text if told is None else told
    assert text_without_secrets(text) == told
    assert text_without_secrets(told) == told, "an error may quote another"


def test_what_this_process_was_given_is_left_out_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{PLANTED}-1")
    monkeypatch.setattr(sys, "argv", ["x", f"a.key='{PLANTED}-2'", "--token", f"{PLANTED}-3", "--key", "--verbose"])
    error = ConfigError(f"{PLANTED}-1, {PLANTED}-2 and {PLANTED}-3 with --verbose")
    assert str(error) == f"{LEFT_OUT}, {LEFT_OUT} and {LEFT_OUT} with --verbose"


def test_doctor(monkeypatch, capsys):
    finding = Finding("plugins", "x", f"failed at http://a:{PLANTED}@b", "bad", f"unset a.key={PLANTED}")
    monkeypatch.setattr(doctor, "examine", lambda _run: [finding])
    for as_json in (True, False):
        doctor.run_doctor(argparse.Namespace(json=as_json, run=None))
        printed = capsys.readouterr().out
        assert printed.count(LEFT_OUT) == 2
        assert PLANTED not in printed


ADDRESS = f"http://me:{PLANTED}@host"
SETTINGS = "actor_rollout_ref.rollout.custom.efficient_rollout"
VERL = pytest.mark.skipif(find_spec("verl") is None or find_spec("hydra") is None, reason="needs veRL's configuration")
OPENRLHF = pytest.mark.skipif(find_spec("omegaconf") is None, reason="needs omegaconf")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["train", f"trainer.wandb_api_key={PLANTED}"], marks=VERL),
        pytest.param(["train", f"+trainer.wandb_api_key={PLANTED}{{,["], marks=VERL),
        pytest.param(["train", f"+trainer.wandb_api_key='{PLANTED}", "recipe=grpo"], marks=VERL),
        pytest.param(["train", "--wandb_api_key", PLANTED], marks=VERL),
        pytest.param(["train", f"+{SETTINGS}.controller.rule={{api_key:{PLANTED}}}"], marks=VERL),
        pytest.param(["train", f"{SETTINGS}.controller.rule={ADDRESS}"], marks=VERL),
        pytest.param(["train", f"+{SETTINGS}.controller.rule=${{oc.env:WANDB_API_KEY}}"], marks=VERL),
        pytest.param(["train", "--cfg", "job", f"+trainer.wandb_api_key={PLANTED}", f"+trainer.proxy={ADDRESS}"],
                     marks=VERL),
        pytest.param(["train", "--cfg", "all", f"+trainer.wandb_api_key={PLANTED}"], marks=VERL),
        pytest.param(["train", "--info", "all", f"+trainer.wandb_api_key={PLANTED}"], marks=VERL),
        pytest.param(["train", "--multirun", f"+trainer.wandb_api_key={PLANTED},{PLANTED}2", "size=x"], marks=VERL),
        pytest.param(["openrlhf", f"--efficient_rollout.api_key={PLANTED}", "--"], marks=OPENRLHF),
        pytest.param(["openrlhf", f"--efficient_rollout.drafter.scheme={ADDRESS}", "--"], marks=OPENRLHF),
        pytest.param(["openrlhf", "--efficient_rollout.drafter={api_key: [" + PLANTED, "--"], marks=OPENRLHF),
        pytest.param(["openrlhf", "--wandb.key", PLANTED, "--"], marks=OPENRLHF),
        ["report", "--wandb-key", PLANTED],
        ["doctor", f"--token={PLANTED}"],
        ["data", f"{ADDRESS}/x", "--api-key", PLANTED],
    ],
)  # fmt: skip
def test_no_command_says_a_secret(arguments, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", PLANTED)
    monkeypatch.setattr(sys, "argv", ["efficient-rollout", *arguments])
    with contextlib.suppress(SystemExit):
        main(arguments)
    printed = "".join(capfd.readouterr())
    assert printed
    assert PLANTED not in printed
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in written if PLANTED.encode() in file.read_bytes()] == []


@VERL
def test_the_address_of_a_cluster_is_told_without_its_password(monkeypatch, caplog):
    from efficient_rollout.verl_plugin.compose import compose_config

    monkeypatch.setenv("RAY_ADDRESS", f"ray://me:{PLANTED}@host:1")
    with caplog.at_level(logging.WARNING):
        compose_config([])
    assert f"joining the Ray cluster at ray://me:{LEFT_OUT}@host:1" in caplog.text
    assert PLANTED not in caplog.text


@VERL
def test_jobs_of_one_command_are_told_apart_without_secrets():
    from efficient_rollout.verl_plugin.compose import job_hydra
    from efficient_rollout.verl_plugin.multirun import jobs_of

    overrides = [f"+trainer.wandb_api_key={PLANTED},{PLANTED}2", "trainer.total_epochs=1,2"]
    with pytest.raises(ConfigError, match="one directory") as raised:
        jobs_of(overrides, job_hydra())
    assert PLANTED not in str(raised.value)
    overrides[0] = f"+trainer.wandb_api_key={PLANTED}"
    assert PLANTED not in repr([(job.swept, job.directory) for job in jobs_of(overrides, job_hydra())])


@pytest.mark.parametrize("arguments", [[], ["train"], ["--wandb-key"]])
def test_a_command_line_of_any_length_is_looked_through(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    assert text_without_secrets("nothing to hide") == "nothing to hide"
