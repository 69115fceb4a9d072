"""Drafting in vLLM's V1 model runner, on a CPU."""
