"""Copies save passes of the drafter where texts repeat, by the seconds of a latency model, and change no text."""

import json

import numpy as np
import pytest
from controller_support import a100_profile, a100_ticks

from efficient_rollout.__main__ import main
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import InputFileError
from efficient_rollout.simulator.copies import CopySimulator, Text, compare_sources, read_texts


def repeating(length: int = 80) -> Text:
    return Text(np.array([7, 8, 9, *([1, 2, 3, 4] * length)[:length]], dtype=np.int32), 3)


def random_text(seed: int, length: int = 80) -> Text:
    return Text(np.random.default_rng(seed).integers(0, 50_000, length).astype(np.int32), 3)


def simulator(acceptance: float = 1.0) -> CopySimulator:
    return CopySimulator(a100_ticks().model, 1024.0, acceptance, 8)


@pytest.mark.parametrize("source", ["off", "own"])
def test_every_token_is_decoded_once(source):
    done = simulator(0.8).decode([repeating()], 1, 4, source)
    assert done.num_tokens == 79
    assert done.num_ticks < 79


def test_without_copies_seconds_are_those_of_the_model():
    done = simulator().decode([random_text(1)], 1, 4, "off")
    plain, _, verify = a100_ticks().model.pass_seconds(4, 1, np.array([1024.0]))
    assert done.num_draft_passes == 4 * done.num_ticks
    first = a100_ticks().model.pass_seconds(1, 1, np.array([1024.0]))[1]
    assert done.seconds == pytest.approx(done.num_ticks * (4 * float(first[0, 0]) + float(verify[3, 0])))
    assert done.plain_seconds == pytest.approx(done.num_tokens * float(plain[0]))


def test_a_text_that_repeats_takes_a_pass_a_tick_and_a_random_one_what_it_took():
    sets = {"repeats": [repeating()], "random": [random_text(2)]}
    rows = {(row.set, row.source): row for row in compare_sources(sets, simulator(), [1, 2], [4, 8])}
    assert rows["repeats", "own"].over_off > 1.2
    assert rows["repeats", "own"].draft_passes_per_tick < 2.0
    assert rows["random", "own"].over_off == pytest.approx(1.0)
    assert {row.batch for row in rows.values()} == {1}, "no set has two responses"


def test_a_group_s_responses_are_copied_from():
    twins = [random_text(3), random_text(3), random_text(4)]
    rows = {row.source: row for row in compare_sources({"twins": twins}, simulator(), [1], [8])}
    assert rows["group"].over_off > rows["own"].over_off


def test_the_command_prints_a_row_for_each_source(tmp_path, capsys):
    texts, profile = tmp_path / "texts.jsonl", tmp_path / "profile.json"
    row = {"set": "one", "prompt_token_ids": [1, 2], "response_token_ids": [3, 4] * 20}
    texts.write_text(json.dumps(row), encoding="utf-8")
    save_profile(a100_profile(), profile)
    command = ["simulate", "--profile", str(profile), "--texts", str(texts), "--batches", "1", "--draft-tokens", "4"]
    assert main(command) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("one")] == [
        "off",
        "own",
        "group",
    ]


@pytest.mark.parametrize("line", ["", "[]", "{", '{"set": "a", "prompt_token_ids": [], "response_token_ids": [1]}',
                                  '{"set": "a", "prompt_token_ids": ["x"], "response_token_ids": [1]}',
                                  '{"set": "a", "prompt_token_ids": [1e99], "response_token_ids": [1]}'])  # fmt: skip
def test_a_file_that_holds_no_responses_is_refused(line, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputFileError, match="response"):
        read_texts(path)
