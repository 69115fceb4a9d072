"""The first command of a newcomer: both arms on real engines, the same responses, and a sentence on their speed."""

import pytest

from efficient_rollout.__main__ import main

pytestmark = pytest.mark.engine


def test_both_arms_answer_alike_and_the_verdict_is_of_their_speed(capfd):
    assert main(["demo", "--size", "nano", "--tokens", "24", "--draft-tokens", "3"]) == 0
    said = capfd.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines() if line.startswith(("plain", "self"))}
    length = float(rows["self-drafting"][-1])
    assert 2.0 < length <= 4.0, "most drafts of int8 are accepted"
    assert float(rows["plain vLLM"][-1]) == 1.0
    assert "Both gave the same 4 responses, token by token." in said
    median, least, most = (
        float(number.strip("[],")) for number in said.split("self-drafting")[-1].splitlines()[0].split()[1:4]
    )
    assert least <= median <= most
    verdict = said.rstrip().splitlines()
    assert any(line.startswith("Drafting pays here") for line in verdict) == (least > 1.0)
    assert any(line.startswith("Drafting does not pay") for line in verdict) == (most < 1.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--requests", "0"], "--requests, --tokens and --draft-tokens must be at least 1"),
        (["--size", "huge"], "huge"),
        (["--size", "nano", "--scheme", "int3"], "int3"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, told, capfd):
    assert main(["demo", *arguments]) == 2
    assert told in capfd.readouterr().err
