"""The only folder that imports vLLM."""
