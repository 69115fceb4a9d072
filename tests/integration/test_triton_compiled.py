"""A compiled drafter, traced when a GPU's worker traces it: before there is a KV cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

from small_policies import save_policy

PROGRAM = Path(__file__).with_name("triton_compiled.py")


def test_every_draft_of_an_unquantized_drafter_is_accepted(tmp_path):
    save_policy(
        tmp_path, spread=0.15, has_random_norms=False, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["fault"] is None
    assert found["is_compiled"]
    assert found["kv_writes"]["drafter"] > 0
    # The last chain of a response may reach behind its end.
    assert sum(found["accepted"]) >= sum(found["drafted"]) - 2 * 3 > 0
    assert found["is_named"], "code that an older version of this package compiled would be loaded again"
