"""Schemes on an NVIDIA GPU: Triton kernels quantize in place, vLLM's kernels multiply."""
