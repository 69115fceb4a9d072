"""The parquet files: veRL's columns, reproducible, disjoint; and the commands that write them."""

import argparse

import pytest

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.tasks.cli import add_data_command, add_policy_command
from efficient_rollout.tasks.dataset import write_dataset
from efficient_rollout.tasks.reward import compute_score
from efficient_rollout.tasks.training_plans import SIZES

parquet = pytest.importorskip("pyarrow.parquet")


def test_rows_have_verls_columns_and_a_label_for_openrlhf(tmp_path):
    train, validation = write_dataset(tmp_path, size="small", num_train=50, num_validation=20, seed=1)
    for path, split, count in ((train, "train", 50), (validation, "validation", 20)):
        rows = parquet.read_table(path).to_pylist()
        assert len(rows) == count
        assert path.name == f"{split}.parquet"
        for index, row in enumerate(rows):
            assert set(row) == {"data_source", "prompt", "label", "ability", "reward_model", "extra_info"}
            assert row["prompt"] == [{"role": "user", "content": row["extra_info"]["question"]}]
            assert row["reward_model"]["style"] == "rule"
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, index)
            truth = row["reward_model"]["ground_truth"]
            assert row["label"] == truth
            assert compute_score(row["data_source"], row["extra_info"]["answer"], truth)["score"] == 1.0


def test_files_are_reproducible_and_disjoint(tmp_path):
    arguments = {"size": "nano", "num_train": 300, "num_validation": 100, "seed": 5}
    first, second = (write_dataset(tmp_path / name, **arguments) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    questions = [{row["prompt"][0]["content"] for row in parquet.read_table(path).to_pylist()} for path in first]
    assert questions[0].isdisjoint(questions[1])


def test_smollm2_is_asked_word_problems_in_a_chat_that_shows_some(tmp_path):
    for path in write_dataset(tmp_path, size="smollm2", num_train=20, num_validation=10, max_response_tokens=8):
        for index, row in enumerate(parquet.read_table(path).to_pylist()):
            assert [message["role"] for message in row["prompt"]] == ["user", "assistant"] * 3 + ["user"]
            assert row["prompt"][-1]["content"] == row["extra_info"]["question"]
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (path.stem, index)
            answer = f"The answer is {row['reward_model']['ground_truth']}."
            assert compute_score(row["data_source"], answer, row["label"])["score"] == 1.0


def test_a_cap_reaches_the_rows(tmp_path):
    train, _ = write_dataset(tmp_path, size="small", num_train=100, num_validation=1, max_response_tokens=32)
    assert max(row["extra_info"]["num_worked_tokens"] for row in parquet.read_table(train).to_pylist()) <= 32


def test_bad_input_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="num_train must be 1 or more, got 0"):
        write_dataset(tmp_path, size="nano", num_train=0, num_validation=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match=r"cannot write .*file/train.parquet.*choose a writable directory"):
        write_dataset(tmp_path / "file", size="nano", num_train=1, num_validation=1)


def test_verl_reads_the_files(tmp_path):
    rl_dataset = pytest.importorskip("verl.utils.dataset.rl_dataset")
    from omegaconf import OmegaConf

    from efficient_rollout.tasks.tokenizer import build_tokenizer

    train, _ = write_dataset(tmp_path, size="nano", num_train=8, num_validation=1)
    config = OmegaConf.create({"max_prompt_length": 32, "cache_dir": str(tmp_path / "cache")})
    dataset = rl_dataset.RLHFDataset(str(train), build_tokenizer(512), config)
    assert len(dataset) == 8
    assert dataset[0]["raw_prompt"][0]["role"] == "user"


def _parse(*arguments):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    add_policy_command(subparsers)
    add_data_command(subparsers)
    return parser.parse_args(arguments)


def test_the_data_command_writes_and_says_where(tmp_path, capsys):
    args = _parse("data", "--size", "nano", "--out", str(tmp_path), "--num-train", "3", "--num-validation", "2")
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'train.parquet'}\n{tmp_path / 'validation.parquet'}\n"


def test_the_policy_command_names_the_sizes(capsys):
    with pytest.raises(SystemExit):
        _parse("policy", "--size", "tiny")
    message = capsys.readouterr().err
    assert all(size in message.partition("tiny")[2] for size in SIZES)
