"""The list of metric names."""

import pytest

from efficient_rollout.metrics import names


def test_names_are_unique_prefixed_and_described():
    metrics = names.all_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics) > 10
    for metric in metrics:
        assert metric.name.startswith(names.PREFIX)
        assert metric.unit
        assert metric.meaning.endswith(".")


def test_every_constant_is_declared():
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert constants - {names.PREFIX} == {metric.name for metric in names.all_metrics()}


def test_what_follows_a_slash_is_free():
    assert names.is_declared(names.ACCEPTANCE_RATE)
    assert names.is_declared(names.ACCEPTANCE_RATE_AT_PREFIX + "1")
    assert names.is_declared(names.REASON_SHARE_PREFIX + "always")
    assert not names.is_declared(names.ACCEPTANCE_RATE + "_at")
    assert not names.is_declared(names.ACCEPTANCE_RATE + "/1")
    assert not names.is_declared("acceptance_rate")


def test_a_second_declaration_is_refused():
    with pytest.raises(ValueError, match="declared twice"):
        names._declare("rollout_seconds", "s", "The same name again.")
