"""Two ranks in vLLM's V2 model runner: each quantizes its shard, both draw the same drafts, and no token changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA path's tests need Triton: bash scripts/install.sh --triton")

import torch
import transformers

pytestmark = [pytest.mark.slow, pytest.mark.several_cores]
PROGRAM = Path(__file__).with_name("triton_ranks.py")


def run(policy, ranks, scheme):
    command = [sys.executable, str(PROGRAM), str(policy), str(ranks), scheme]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("scheme", ["int4", "unquantized"])
def test_samples_are_those_of_one_rank_that_does_not_draft(scheme, tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    policy = transformers.Qwen3ForCausalLM(config)
    for parameter in policy.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.save_pretrained(tmp_path)
    expected = run(tmp_path, 1, "none")
    drafted = run(tmp_path, 2, scheme)
    assert drafted["tokens"] == expected["tokens"]
    assert [status["drafter_fault"] for status in drafted["statuses"]] == [None, None]
    assert [status["packed_layers"] for status in drafted["statuses"]] == [9 if scheme == "int4" else 0] * 2
