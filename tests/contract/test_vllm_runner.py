"""Where vLLM would run an engine on its V2 model runner, one of this package gets the V1 runner, and says so."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm")

# As if a Triton with a CPU backend were installed: the constants that vLLM asks. In a process of its own, for what is
# imported then looks for that Triton.
SCRIPT = """
import json, logging, sys

import vllm.config.vllm, vllm.triton_utils
from vllm.engine.arg_utils import EngineArgs

from efficient_rollout.engine import environment

vllm.config.vllm.HAS_TRITON = vllm.triton_utils.HAS_TRITON = True
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append([record.levelname, record.getMessage()])
logging.getLogger(environment.__name__).addHandler(handler)


def runs_on_v2():
    speculation = {"method": "draft_model", "model": sys.argv[1], "num_speculative_tokens": 2}
    arguments = EngineArgs(
        model=sys.argv[1], skip_tokenizer_init=True, async_scheduling=False, dtype="float32",
        speculative_config=speculation, max_model_len=64,
    )
    return bool(arguments.create_engine_config().use_v2_model_runner)


by_itself = runs_on_v2()
environment.choose_runner()
print(json.dumps({"by_itself": by_itself, "chosen": runs_on_v2(), "said": said}))
"""


@pytest.mark.slow
def test_the_v1_runner_is_chosen_where_vllm_would_choose_the_other(tmp_path, monkeypatch):
    from transformers import Qwen3Config

    Qwen3Config(hidden_size=64, num_hidden_layers=1, architectures=["Qwen3ForCausalLM"]).save_pretrained(tmp_path)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(result.stdout.splitlines()[-1])
    assert not told["chosen"]
    ((level, message),) = told["said"]
    assert level == "WARNING"
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in message
    assert told["by_itself"], "vLLM chooses the V1 runner by itself: choose_runner need not"
