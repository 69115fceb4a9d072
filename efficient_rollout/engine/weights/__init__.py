"""New weights into a running engine, through every door that vLLM has."""
