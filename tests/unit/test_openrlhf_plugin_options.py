"""The command line of an OpenRLHF job."""

import pytest

pytest.importorskip("omegaconf")

from efficient_rollout.__main__ import main
from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.openrlhf_plugin.options import parse_options


def test_openrlhfs_arguments_are_not_touched():
    theirs = ["--actor.model_name_or_path", "policy", "--efficient_rollout.enabled=false", "--", "-h"]
    options = parse_options(["--", *theirs])
    assert options.openrlhf == tuple(theirs)
    assert options.settings == Settings().for_training()


def test_a_setting_is_an_option_and_wins_over_the_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("drafter: {scheme: int4, group_size: 32}\nenabled: false\n")
    options = parse_options(
        ["--efficient_rollout", str(file), "--efficient_rollout.drafter.scheme=int8", "--cpu.param_dtype=float32", "--"]
    )
    assert options.settings.drafter.scheme == "int8"
    assert options.settings.drafter.group_size == 32
    assert not options.settings.enabled
    assert options.param_dtype == "float32"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "stand behind `--`"),
        (["--efficient_rollout.enabled=false"], "stand behind `--`"),
        (["--efficient_rollout.enabled", "false", "--"], "has no value: write --efficient_rollout.enabled=VALUE"),
        (["--efficient_rollout.drafter.sheme=int4", "--"], "drafter.sheme: unknown setting; legal here: scheme"),
        (["--efficient_rollout.drafter.scheme=int3", "--"], "drafter.scheme"),
        (["--cpu.param_dtype=fp32", "--"], "invalid choice: 'fp32'"),
        (["--cpu.kv_cache_bytes=-1", "--"], "kv_cache_bytes"),
        (["--actor.num_nodes", "1", "--"], "unrecognized arguments: --actor.num_nodes 1"),
        (["--efficient_rollout=a.yaml", "--efficient_rollout.drafter=${oops}", "--"], "cannot read a.yaml"),
        (["--efficient_rollout.drafter.scheme=${oops}", "--"], "the settings cannot be read"),
    ],
)
def test_what_is_wrong_is_one_message(argv, message):
    with pytest.raises((ConfigError, InputFileError)) as raised:
        parse_options(argv)
    assert message in str(raised.value)


@pytest.mark.parametrize(("text", "message"), [("- a\n", "holds a list"), ("a: [", "is not yaml")])
def test_a_file_that_holds_no_settings_is_named(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(InputFileError, match=message):
        parse_options(["--efficient_rollout", str(file), "--"])


def test_the_command_passes_everything_on(capsys):
    assert main(["openrlhf", "--efficient_rollout.drafter.scheme=int3", "--", "--anything"]) == 2
    assert "drafter.scheme" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["openrlhf", "--help"])
    assert ended.value.code == 0
    assert "OPENRLHF_ARGUMENTS" in capsys.readouterr().out
