"""The only folder that imports veRL."""

ROLLOUT_NAME = "efficient_vllm"
"""Value of `actor_rollout_ref.rollout.name` that selects this package in any veRL job."""

PLUGIN_MODULE = "efficient_rollout.verl_plugin.register"
"""What `import verl` loads by the entry point `verl.plugins`."""
