"""Kernels in C, compiled for this machine's compiler the first time they are needed."""
