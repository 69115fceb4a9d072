"""vLLM's V2 model runner: what GPUs run."""
