"""What is read from a policy's `config.json`, and what is said of one that lacks it."""

import json
from pathlib import Path
from typing import Any

import pytest

from efficient_rollout.errors import InputFileError
from efficient_rollout.policy_config import find_policy_config, read_policy_config


def write(directory: Path, content: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def test_a_directory_and_its_file_are_the_same_policy(tmp_path):
    policy = write(tmp_path, {"vocab_size": 7, "eos_token_id": [2, 3], "max_position_embeddings": 64})
    config = read_policy_config(policy)
    assert config == read_policy_config(policy / "config.json") == read_policy_config(str(policy))
    assert (config.size("vocab_size"), config.eos_token_ids, config.max_positions) == (7, (2, 3), 64)


def test_what_it_does_not_say(tmp_path):
    config = read_policy_config(write(tmp_path, {"head_dim": None}))
    assert config.eos_token_ids == ()
    assert config.max_positions > 10**8
    assert config.size("head_dim", default=5) == 5
    assert read_policy_config(write(tmp_path, {"eos_token_id": 2})).eos_token_ids == (2,)


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, True, "8"])
def test_a_size_that_is_none_is_named(tmp_path, value):
    with pytest.raises(InputFileError, match=r"config\.json: vocab_size must be a positive integer"):
        read_policy_config(write(tmp_path, {"vocab_size": value})).size("vocab_size")


def test_no_policy_and_no_object_are_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"nowhere/config\.json"):
        read_policy_config(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match="JSON object"):
        read_policy_config(write(tmp_path, [1]))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A Hub's cache with one policy, and no network; returns the policy's directory in it."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--policy" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return write(snapshot, {"vocab_size": 7})


def test_a_name_on_the_hub_is_a_policy(hub, monkeypatch, tmp_path):
    config = read_policy_config("owner/policy")
    assert config.size("vocab_size") == 7
    assert config.path == hub / "config.json"
    # A directory of that name comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "policy").mkdir(parents=True)
    assert find_policy_config("owner/policy") == Path("owner/policy/config.json")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["owner/other", "no..such/name"])
def test_a_name_that_the_hub_does_not_have_is_refused_in_one_line(name):
    with pytest.raises(InputFileError, match=rf"no policy at {name}: there is no such directory here, and") as raised:
        read_policy_config(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["./owner/policy", "../policy", "/owner/policy", "policy", "a/b/c", "~/policy"])
def test_a_path_is_never_asked_of_the_hub(path):
    assert find_policy_config(path) == Path(path).expanduser() / "config.json"
