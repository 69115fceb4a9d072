"""Traces, drawn and read, and which engine serves what."""

import json

import numpy as np
import pytest

from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.simulator.trace import draw_trace, read_trace


def test_lengths_are_drawn_with_the_mean_and_spread_they_had_before_the_cut():
    drawn = draw_trace("lognormal:640,0.5,1000000", 128, 64, seed=0).response_tokens
    assert drawn.mean() == pytest.approx(640, rel=0.02)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.02)
    cut = draw_trace("lognormal:640,0.5,1000", 128, 64, seed=0).response_tokens
    np.testing.assert_array_equal(cut, np.minimum(drawn, 1000))


def test_a_trace_is_json_lines_or_a_list(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt_tokens": 9, "response_tokens": 5}\n{"response_tokens": 7}\n')
    read = read_trace(path)
    assert (read.prompt_tokens.tolist(), read.response_tokens.tolist()) == ([9, 128], [5, 7])
    path.write_text(json.dumps([{"prompt_tokens": 9, "response_tokens": 5}]))
    assert read_trace(path).prompt_tokens.tolist() == [9]


@pytest.mark.parametrize("text", ['{"tokens": 5}', '[{"response_tokens": 0}]', "nonsense", "[]", None])
def test_a_malformed_trace_is_refused(tmp_path, text):
    path = tmp_path / "t.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputFileError, match=r"t\.jsonl"):
        read_trace(path)


@pytest.mark.parametrize("lengths", ["normal:1,1,1", "lognormal:640", "lognormal:-1,1,10", "lognormal:1,6,10"])
def test_malformed_lengths_are_refused(lengths):
    with pytest.raises(ConfigError, match="lognormal:MEAN,SIGMA,MAX"):
        draw_trace(lengths, 1, 1, 0)


def test_engines_are_served_in_turn_and_none_goes_without():
    drawn = draw_trace("lognormal:64,1.0,100", 5, 1, seed=0)
    assert drawn.assigned(2).tolist() == [0, 1, 0, 1, 0]
    assert drawn.assigned(5).tolist() == [0, 1, 2, 3, 4]
    for num_engines in (0, 6):
        with pytest.raises(ConfigError, match=f"{num_engines} engines for 5 requests"):
            drawn.assigned(num_engines)
