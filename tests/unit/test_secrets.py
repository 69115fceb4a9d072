"""Values of secret names are left out, and nothing else is."""

import pytest

from efficient_rollout.secrets import LEFT_OUT, arguments_without_secrets, is_secret, without_secrets


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
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["data.prompt_key", "--data.input_key", "eos_token", "eos_token_id", "max_tokens", "num_draft_tokens", "key.names",
     "tokenizer", "reward_fn_key", "is_correction_level", "loss_agg_mode", "monkey"],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret(name)


def test_arguments_keep_their_names() -> None:
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


def test_trees_keep_their_shape() -> None:
    tree = {"a": [{"token": "abc", "steps": 3}], "secret": None, "wandb": {"key": "abc", "project": "p"}}
    assert without_secrets(tree) == {
        "a": [{"token": LEFT_OUT, "steps": 3}], "secret": None, "wandb": {"key": LEFT_OUT, "project": "p"},
    }  # fmt: skip
