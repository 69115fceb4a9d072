"""Whose kernels the policy's own layers get here."""

import pytest
import torch

from efficient_rollout.config import Settings
from efficient_rollout.engine import installed
from efficient_rollout.errors import SchemeUnavailableError


@pytest.mark.parametrize(
    ("kernel", "dtype", "avx512", "missing", "expected"),
    [
        ("auto", torch.float32, False, None, True),
        ("auto", torch.float32, True, None, False),
        ("auto", torch.bfloat16, False, None, False),
        ("stock", torch.float32, False, None, False),
        ("native", torch.float32, True, None, True),
    ],
)
def test_native_products_are_used_where_they_are_faster_or_asked_for(
    monkeypatch, kernel, dtype, avx512, missing, expected
):
    monkeypatch.setattr(installed, "has_avx512", lambda: avx512)
    monkeypatch.setattr(installed, "native_missing", lambda: missing)
    assert installed.uses_native_products(Settings(verify_kernel=kernel), dtype) is expected


def test_native_products_that_cannot_be_had_are_said_and_never_replaced_in_silence(monkeypatch, caplog):
    monkeypatch.setattr(installed, "has_avx512", lambda: False)
    monkeypatch.setattr(installed, "native_missing", lambda: "no compiler")
    assert not installed.uses_native_products(Settings(), torch.float32)
    assert "no compiler" in caplog.text
    with pytest.raises(SchemeUnavailableError, match=r"no compiler.*verify_kernel=auto"):
        installed.uses_native_products(Settings(verify_kernel="native"), torch.float32)
    monkeypatch.setattr(installed, "native_missing", lambda: None)
    with pytest.raises(SchemeUnavailableError, match="bfloat16"):
        installed.uses_native_products(Settings(verify_kernel="native"), torch.bfloat16)
