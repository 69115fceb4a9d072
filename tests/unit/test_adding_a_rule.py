"""docs/rules.md is true of the sources: its worked example is carried out on a copy of the package, and used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_support import apply, code_blocks

from efficient_rollout.rule_table import RULES

PAGE = Path("docs/rules.md")
USE = """
import sys
from efficient_rollout import __file__ as package
from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import RuleInputs, make_rule
from efficient_rollout.controller.rule import DecodeState

assert package.startswith(sys.argv[1]), package
chosen = Settings.parse({"controller": {"rule": "taper"}}).controller.rule
rule = make_rule(chosen, RuleInputs(max_draft_tokens=6))
states = [
    DecodeState(num_running_requests=n, num_waiting_requests=0, num_prefill_tokens=0, mean_context_tokens=9.0,
                max_draft_tokens=4)
    for n in (1, 2, 3, 7)
]
assert [rule.decide(state).num_draft_tokens for state in states] == [4, 3, 2, 0]
if len(sys.argv) > 2:
    from efficient_rollout.verl_plugin.compose import compose_config

    rollout = compose_config(["controller=taper"]).actor_rollout_ref.rollout
    assert rollout.custom.efficient_rollout.controller.rule == "taper"
"""


@pytest.fixture(scope="module")
def copy(repository, tmp_path_factory) -> Path:
    """A checkout in which the page is carried out."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("efficient_rollout", "configs", "recipes"):
        shutil.copytree(repository / name, folder / name, ignore=ignored)
    (folder / "tests" / "unit").mkdir(parents=True)
    for name in ("test_controller_rule.py", "controller_support.py"):
        shutil.copy(repository / "tests" / "unit" / name, folder / "tests" / "unit" / name)
    shutil.copytree(repository / "tests" / "data", folder / "tests" / "data")
    (module,) = code_blocks(repository / PAGE, "python")
    (folder / "efficient_rollout" / "controller" / "taper.py").write_text(module)
    (diff,) = code_blocks(repository / PAGE, "diff")
    assert str(apply(diff, folder)) == "efficient_rollout/rule_table.py"
    assert diff.count("\n+") == 2, "the header's line, and one"
    return folder


def run(copy: Path, *arguments: str) -> None:
    # The working directory comes before the installed package.
    result = subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_rule_is_legal_and_decides(copy):
    run(copy, "-c", USE, str(copy))


def test_it_is_an_option_of_hydras_group(copy):
    pytest.importorskip("verl")
    run(copy, "-c", USE, str(copy), "train")


def test_the_simulator_replays_it(copy, tmp_path):
    arguments = ["--from-csv", "tests/data/sweep_a100_tp1_qwen257b.csv", "--out", str(tmp_path / "profile.json")]
    run(copy, "-m", "efficient_rollout", "calibrate", *arguments)
    simulate = ("--profile", str(tmp_path / "profile.json"), "--lengths", "lognormal:50,1,400", "--requests", "8")
    run(copy, "-m", "efficient_rollout", "simulate", *simulate, "--rule", "taper")


def test_the_tests_of_every_rule_pass_with_it(copy):
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_controller_rule.py")


def test_every_rule_has_a_row(repository):
    text = (repository / PAGE).read_text()
    rows = {line.split(" | ")[0].strip("| `"): line for line in text.splitlines() if line.startswith("| `")}
    assert tuple(rows) == tuple(RULES)
    assert {name: row.endswith("| yes |") for name, row in rows.items()} == {
        name: entry.needs_profile for name, entry in RULES.items()
    }


def test_the_frameworks_pages_name_every_rule(repository):
    for page in ("verl.md", "vllm.md"):
        text = (repository / "docs" / page).read_text()
        assert [name for name in RULES if f"`{name}`" not in text] == [], page
