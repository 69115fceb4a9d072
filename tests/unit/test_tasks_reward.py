"""The reward: right answers only, complete answers only, loadable by path."""

import importlib.util

import pytest

from efficient_rollout.tasks import reward
from efficient_rollout.tasks.word_problems import DATA_SOURCE


@pytest.mark.parametrize(
    ("response", "score", "well_formed"),
    [
        ("17+5+9=22+9=31.", 1, 1),
        ("31.", 1, 1),
        ("  31.\n", 1, 1),
        ("16+5+9=22+9=31.", 1, 1),
        ("17+5+9=22+9=32.", 0, 1),
        ("17+5+9=22+9=31", 0, 0),
        ("17+5+9=22+9=3", 0, 0),
        ("17+5+9=22+31.", 0, 0),
        ("17+5+9=31.=32.", 0, 1),
        ("131.", 0, 1),
        ("031.", 0, 1),
        ("-31.", 0, 0),
        ("31..", 0, 0),
        ("٣١.", 0, 0),
        ("", 0, 0),
        ("=.", 0, 0),
    ],
)
def test_score(response, score, well_formed):
    result = reward.compute_score("efficient_rollout/arithmetic", response, "31", {"index": 0})
    assert result == {"score": score, "acc": score, "well_formed": well_formed}


@pytest.mark.parametrize(("data_source", "response"), [("x", "3."), (DATA_SOURCE, "The answer is 3.")])
def test_it_loads_by_path_and_takes_verls_keywords(data_source, response):
    spec = importlib.util.spec_from_file_location("custom_module", reward.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.compute_score(
        data_source=data_source, solution_str=response, ground_truth="3", extra_info=None, reward_router_address=None
    )
    assert result["score"] == 1.0
