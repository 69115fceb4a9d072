"""The settings tree: what it accepts, what it refuses, and what it then says."""

from typing import Any

import pytest

from efficient_rollout.config import ControllerSettings, DrafterSettings, Settings
from efficient_rollout.errors import ConfigError

CHANGED = {
    "enabled": False,
    "drafter": {"scheme": "int4", "group_size": 32, "lookup": "off", "attention_window_tokens": 512,
                "quantize_output_head": False},
    "controller": {"rule": "always", "max_draft_tokens": 6, "num_draft_tokens": 3, "max_running_requests": 5,
                   "validation_max_draft_tokens": 0},
}  # fmt: skip


def message_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.parse(raw, where="some.place")
    return str(caught.value)


def test_nothing_given_is_every_default():
    assert Settings.parse(None) == Settings.parse({}) == Settings()
    assert Settings().enabled
    assert Settings.parse(Settings().to_dict()) == Settings()


def test_every_given_value_arrives():
    settings = Settings.parse(CHANGED)
    assert not settings.enabled
    assert settings.drafter.model_dump() == CHANGED["drafter"]
    given = CHANGED["controller"]
    assert {name: getattr(settings.controller, name) for name in given} == given
    assert Settings.parse(settings.to_dict()) == settings


def test_tree_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().enabled = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("raw", "fault", "legal"),
    [
        ({"enable": True}, "enable: unknown setting", set(Settings.model_fields)),
        ({"drafter": {"bits": 4}}, "drafter.bits: unknown setting", set(DrafterSettings.model_fields)),
        ({"controller": {"k": 4}}, "controller.k: unknown setting", set(ControllerSettings.model_fields)),
    ],
)
def test_unknown_key_is_refused_with_the_legal_ones(raw, fault, legal):
    message = message_of(raw)
    assert "some.place" in message
    line = next(line for line in message.splitlines() if fault in line)
    assert set(line.partition("legal here: ")[2].split(", ")) == legal


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"drafter": {"scheme": "fp4"}}, ["drafter.scheme", "'int8'", "'int4'", "'unquantized'", "'fp4'"]),
        ({"drafter": {"group_size": 48}}, ["drafter.group_size", "32, 64 or 128", "48"]),
        ({"controller": {"rule": "sometimes"}}, ["controller.rule", "'never'", "'batch_threshold'", "'sometimes'"]),
        ({"controller": {"max_draft_tokens": 0}}, ["controller.max_draft_tokens", "greater than or equal to 1", "0"]),
        ({"controller": {"max_draft_tokens": 17}}, ["controller.max_draft_tokens", "less than or equal to 16", "17"]),
        ({"enabled": "perhaps"}, ["enabled", "'perhaps'"]),
        ({"drafter": "int8"}, ["drafter", "'int8'"]),
        (
            {"controller": {"num_draft_tokens": 5, "max_draft_tokens": 4}},
            ["num_draft_tokens (5)", "max_draft_tokens (4)"],
        ),
    ],
)
def test_bad_value_is_refused_with_the_legal_ones(raw, named):
    message = message_of(raw)
    assert [text for text in named if text not in message] == []


def test_one_message_lists_every_fault():
    message = message_of({"unknown": 1, "drafter": {"scheme": "fp4"}, "controller": {"max_draft_tokens": 99}})
    assert len(message.splitlines()) == 4


def test_copies_are_looked_up_on_a_cpu_and_on_a_gpu_only_where_they_are_asked_for():
    drafters = {lookup: Settings.parse({"drafter": {"lookup": lookup}}).drafter for lookup in ("auto", "own", "off")}
    assert [drafter.lookup_on("cpu") for drafter in drafters.values()] == ["own", "own", "off"]
    assert [drafter.lookup_on("cuda") for drafter in drafters.values()] == ["off", "own", "off"]
