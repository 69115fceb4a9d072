"""Replace one upstream function, on the record: idempotent, and refused where upstream has drifted.

Standard library only, so that it can run inside `import verl` in every process.
"""

import hashlib
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from efficient_rollout.errors import PatchDriftError

logger = logging.getLogger(__name__)

State = Literal["applied", "not applied", "not needed", "drifted"]

_MARKER = "__efficient_rollout_patch__"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Is one ledger entry.

    Attributes:
        target: `module:attribute.path` of the function to replace.
        make_replacement: Gets the original, returns its replacement.
        reason: The upstream fault, and why the replacement is safe.
        tested_versions: Upstream versions whose target has a `source_sha256()` that is listed.
        remove_when: What must have happened upstream before this entry can go.
        is_needed: False where upstream does not show the fault, None to apply always.
    """

    name: str
    target: str
    make_replacement: Callable[[Callable[..., Any]], Callable[..., Any]]
    reason: str
    tested_versions: str
    source_sha256: frozenset[str]
    remove_when: str
    is_needed: Callable[[], bool] | None = None


def source_sha256(function: Callable[..., Any]) -> str:
    """Return the hash of a function's source text, whitespace at line ends aside."""
    lines = inspect.getsource(function).splitlines()
    return hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()


def state(patch: Patch) -> State:
    """Return what became of `patch` in this process."""
    try:
        _, _, current = resolve(patch.target)
    except (AttributeError, ModuleNotFoundError):
        # Another version keeps the code elsewhere, or has it no more.
        return "drifted" if patch.is_needed is None or patch.is_needed() else "not needed"
    if getattr(current, _MARKER, None) == patch.name:
        return "applied"
    if patch.is_needed is not None and not patch.is_needed():
        return "not needed"
    return "not applied" if source_sha256(current) in patch.source_sha256 else "drifted"


def unfit(states: Mapping[str, str]) -> dict[str, str]:
    """Return those of some patches, by name, that are neither applied nor not needed."""
    return {name: found for name, found in states.items() if found not in ("applied", "not needed")}


def refuse_drifted(patches: Iterable[Patch]) -> None:
    """Raise where a patch is needed and cannot be applied.

    Raises:
        PatchDriftError: The target is not the code the patch was written for.
    """
    for patch in patches:
        if state(patch) == "drifted":
            raise PatchDriftError(
                f"patch '{patch.name}' does not know this version of {patch.target} "
                f"(tested: {patch.tested_versions}). Another package may have replaced it, or the installed "
                f"version is newer than this package supports: install a tested version."
            )


def apply_patches(patches: Sequence[Patch], *, leave_drifted: bool = False) -> None:
    """Apply each patch that is needed and not yet applied.

    Args:
        patches: All that are wanted.
        leave_drifted: Where nobody has asked for them yet: apply the others, and say nothing.

    Raises:
        PatchDriftError: See `refuse_drifted`. Nothing is applied then.
    """
    if not leave_drifted:
        refuse_drifted(patches)
    for patch in patches:
        if state(patch) != "not applied":
            continue
        owner, attribute, original = resolve(patch.target)
        replacement = patch.make_replacement(original)
        replacement.__name__ = attribute  # in tracebacks, as upstream calls it
        setattr(replacement, _MARKER, patch.name)
        setattr(owner, attribute, replacement)
        logger.info("applied patch '%s' to %s", patch.name, patch.target)


def describe(patches: Iterable[Patch]) -> list[dict[str, str]]:
    """Return one row per patch for `doctor` and the docs."""
    told = ("name", "target", "reason", "tested_versions", "remove_when")
    return [{"state": state(patch)} | {key: getattr(patch, key) for key in told} for patch in patches]


def resolve(target: str) -> tuple[Any, str, Any]:
    """Return owner, name and value of `module:attribute.path`.

    Raises:
        ModuleNotFoundError: There is no such module.
        AttributeError: There is no such attribute.
    """
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, attribute, getattr(owner, attribute)
