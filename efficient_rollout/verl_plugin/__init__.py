"""The only folder that imports veRL."""

ROLLOUT_NAME = "efficient_vllm"
"""Value of `actor_rollout_ref.rollout.name` that selects this package in any veRL job."""
