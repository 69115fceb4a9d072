"""`efficient-rollout gpu-check`: prove on a GPU what tests prove on a CPU, in Triton's interpreter."""
