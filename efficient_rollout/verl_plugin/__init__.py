"""The only folder that imports veRL."""

ROLLOUT_NAME = "efficient_vllm"
"""Value of `actor_rollout_ref.rollout.name` that selects this package in any veRL job."""

PLUGIN_MODULE = "efficient_rollout.verl_plugin.register"
"""What `import verl` loads by the entry point `verl.plugins`."""

HOW_TO_LOAD = (
    "install the same version of efficient-rollout on every node, and leave VERL_USE_EXTERNAL_PLUGINS and VLLM_PLUGINS "
    "unset or let them include 'efficient_rollout', in ray_kwargs.ray_init.runtime_env too"
)
"""What to do where a process of a job lacks the plugin."""
