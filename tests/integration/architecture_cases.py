"""Tiny policies of many architectures, and the engines that are started on them."""

from typing import Any

WINDOW = 40  # tokens; the KV cache's blocks are smaller, and half of the prompts longer
_GEMMA = {"embedding_spread": 0.04, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
# Caps that are felt: scores and logits of these policies go to about 10.
_CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
_MIXED = {"sliding_window": WINDOW, "num_hidden_layers": 4}
_ODD_SIZES = {"vocab_size": 151, "hidden_size": 96, "intermediate_size": 176, "num_attention_heads": 3}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"architecture": "Qwen2"},
    "qwen2-windows": {"architecture": "Qwen2", "use_sliding_window": True, "max_window_layers": 0, **_MIXED},
    "qwen2-odd-sizes": {"architecture": "Qwen2", "num_key_value_heads": 1, **_ODD_SIZES},
    "qwen3": {"architecture": "Qwen3"},
    "llama": {"architecture": "Llama"},
    "llama-biases": {"architecture": "Llama", "attention_bias": True, "mlp_bias": True},
    "mistral-windows": {"architecture": "Mistral", "sliding_window": WINDOW},
    "ministral": {"architecture": "Ministral", "layer_types": ["sliding_attention", "full_attention"] * 2, **_MIXED},
    "phi3-windows": {"architecture": "Phi3", "sliding_window": WINDOW},
    "gemma": {"architecture": "Gemma", **_GEMMA},
    "gemma2": {"architecture": "Gemma2", **_GEMMA, **_CAPS, **_MIXED},
    "gemma3": {"architecture": "Gemma3Text", **_GEMMA, **_MIXED, "num_hidden_layers": 6},
    "granite": {"architecture": "Granite", "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "stablelm": {"architecture": "StableLm"},
    "gpt2": {"architecture": "GPT2"},
    "opt": {"architecture": "OPT", "ffn_dim": 256},
    "gpt-neox": {"architecture": "GPTNeoX"},
    "glm4": {"architecture": "Glm4"},
    "cohere2": {"architecture": "Cohere2", **_MIXED},
    "olmo2": {"architecture": "Olmo2"},
    "olmo3": {"architecture": "Olmo3", **_MIXED},
    "starcoder2-windows": {"architecture": "Starcoder2", "sliding_window": WINDOW},
    "smollm3": {"architecture": "SmolLM3"},
}
# One of each kind of attention, of positions and of fused layers; the rest is slow.
COMMON = ("gemma2", "mistral-windows", "gpt2", "one-kv-cache-group", "int8", "attention-window-for-nobody")
WITH_WINDOWS = tuple(name for name, config in ARCHITECTURES.items() if "sliding_window" in config)
# Without prefix caching, and with so few blocks that those a window leaves behind are soon another request's.
REUSING_BLOCKS = {"enable_prefix_caching": False, "num_gpu_blocks_override": 80}
ENGINES: dict[str, dict[str, Any]] = {
    name: REUSING_BLOCKS for name in ("qwen2-windows", "ministral", "gemma3", "starcoder2-windows")
}
# Further arms: the architecture, settings of the drafter, and engine arguments.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {"scheme": "unquantized"}, ENGINES.get(name, {})) for name in ARCHITECTURES},
    "one-kv-cache-group": ("gemma2", {"scheme": "unquantized"}, {"disable_hybrid_kv_cache_manager": True}),
    "int8": ("smollm3", {"scheme": "int8"}, {}),
    "attention-window": ("gemma2", {"scheme": "unquantized", "attention_window_tokens": 16}, {}),
    "attention-window-for-nobody": ("mistral-windows", {"scheme": "unquantized", "attention_window_tokens": 16}, {}),
}
RARE = tuple(arm for arm in ARMS if arm not in COMMON)
