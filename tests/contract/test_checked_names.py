"""The contract tests' own tools see what is missing, and what would not fit."""

from dataclasses import dataclass

import pytest
from checked_names import call_breaches, missing, override_breaches


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


def test_attributes_of_instances_are_found_without_one():
    names = ("annotated", "constant", "assigned", "second", "read", "computed", "given", "inner", "set_later")
    there = [f"{HERE}:Child.{name}" for name in names]
    there += [f"{HERE}:Record.declared", f"{HERE}:give.given", f"{HERE}:HERE", f"{HERE}:HERE.upper"]
    assert missing(there) == []


def test_what_is_missing_is_named():
    gone = [
        "os:no_such_thing", "no.such.module:x", f"{HERE}:Child.never_assigned", f"{HERE}:Record.other",
        f"{HERE}:give.other", f"{HERE}:Absent.x",
    ]  # fmt: skip
    assert missing(["os:getpid", *gone]) == gone


def stock(first, second=0, *, third=None):
    """Called, or overridden, in the tests below."""


@pytest.mark.parametrize(
    ("passed", "breach"),
    [
        ("first * third", None),
        ("* first", None),
        ("second first", "takes first, second first, not second, first"),
        ("first * fourth", "takes no fourth"),
        ("* third", "needs first too"),
    ],
)
def test_a_call_that_would_fail_is_named(passed, breach):
    found = list(call_breaches(f"{HERE}:stock", passed))
    assert found == ([breach] if breach else [])


@pytest.mark.parametrize(
    ("ours", "breach"),
    [
        ("first, second=0, third=None", None),
        ("first, **others", None),
        ("first, *, third, second", None),
        ("first, third=None", "is called with second"),
        ("other=None, **others", "is called with first"),
        ("first, second, third, fourth", "is called without fourth"),
    ],
)
def test_an_override_that_would_fail_is_named(monkeypatch, ours, breach):
    monkeypatch.setitem(globals(), "ours_of_this_test", eval(f"lambda {ours}: None"))
    found = list(override_breaches(f"{HERE}:stock", f"{HERE}:ours_of_this_test"))
    assert [what.partition(",")[0] for what in found] == ([breach] if breach else [])
