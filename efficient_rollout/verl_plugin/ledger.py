"""The patches to veRL, each with its reason, and whether they are in; `patching.py` applies them."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from efficient_rollout import __version__
from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.metrics.step_file import one_wandb_run
from efficient_rollout.patching import Patch, state, unfit
from efficient_rollout.provenance import package_versions
from efficient_rollout.verl_plugin import HOW_TO_LOAD, PLUGIN_MODULE, ROLLOUT_NAME
from efficient_rollout.verl_plugin.platform import cpu_is_chosen


def _gloo_only(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda timeout_second=None, backend=None: original(timeout_second, backend or "cpu:gloo")


def _attention_without_flash(_original: Callable[..., Any]) -> Callable[..., Any]:
    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        chosen = getattr(model_config, "_attn_implementation", None)
        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            torch_dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa" if chosen in (None, "flash_attention_2") else chosen,
            trust_remote_code=trust_remote_code,
        )

    return load_valuehead_model


def _nothing_to_offload(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, fsdp_kwargs, config: original(model, {**fsdp_kwargs, "offload_policy": None}, config)


def _with_our_checks(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)  # `checks.validate` asks for veRL's own alone
    def validate_config(config: Any, use_reference_policy: bool, use_critic: bool) -> None:
        original(config, use_reference_policy, use_critic)
        if config.actor_rollout_ref.rollout.name == ROLLOUT_NAME:
            from efficient_rollout.verl_plugin.checks import check_stock_job

            check_stock_job(config)

    return validate_config


def _with_step_logger(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from efficient_rollout.verl_plugin.metrics import step_logger

        ours = step_logger(inspect.signature(original).bind(self, *args, **kwargs).arguments.get("config"))
        with one_wandb_run(ours.run_id) if ours else contextlib.nullcontext():
            original(self, *args, **kwargs)
        if ours:
            self.logger = ours.before(self.logger)

    return __init__


_TESTED = "verl 0.9.1"
# Without these stock veRL does not run on a CPU: for every process there, whatever the job's rollout name.
CPU_PATCHES = (
    Patch(
        name="gloo-only-process-group",
        target="verl.utils.distributed:initialize_global_process_group_ray",
        make_replacement=_gloo_only,
        reason="The default backend string names the CPU and the device each once, which is 'cpu:gloo,cpu:gloo' "
        "on a CPU platform; torch refuses a repeated device. An explicit backend is passed on untouched.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"e9ec517a0089c3c5e6917f28bdd2f55bf493b452aa70fd85c7c17bd12a3e485f"}),
        remove_when="veRL builds the backend string without repeating the device.",
        is_needed=cpu_is_chosen,
    ),
    Patch(
        name="critic-attention-on-cpu",
        target="verl.utils.model:load_valuehead_model",
        make_replacement=_attention_without_flash,
        reason="The critic's model is loaded with attn_implementation='flash_attention_2' whatever the model's "
        "configuration says; that kernel needs an NVIDIA GPU. The configured implementation is used instead.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"d7528f4ff909c7c31e6485e97756fd076f2cddd7004a0feab8ff89be2a14fa17"}),
        remove_when="load_valuehead_model honours override_config.attn_implementation.",
        is_needed=cpu_is_chosen,
    ),
    Patch(
        name="no-offload-on-cpu",
        target="verl.utils.fsdp_utils:apply_fsdp2",
        make_replacement=_nothing_to_offload,
        reason="A reference model's parameters are always offloaded, to memory that is pinned for the copies to an "
        "accelerator; torch refuses to pin without one. On a CPU they are where they are computed with: the policy "
        "that offloads is left out, and nothing else changes.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"149338289b614e135a93d114e123047bcee5ab28accc93b2ad428f6ba84a4c5e"}),
        remove_when="veRL pins no memory where there is no accelerator.",
        is_needed=cpu_is_chosen,
    ),
)

# For every process: nobody knows yet whose job it is.
JOB_PATCHES = (
    Patch(
        name="job-checks",
        target="verl.utils.config:validate_config",
        make_replacement=_with_our_checks,
        reason="It is the one function that a job of veRL's own entry point passes before Ray starts. For jobs with "
        "this rollout name, what this package would refuse later, when models are loaded, is refused there. Every "
        "other job gets veRL's own answer.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"9e2d82e4b51e7099f5c295c96ba1d117c7255965a1ed14e8bc25f289f56f2028"}),
        remove_when="A rollout can have checks of its own in veRL's registry.",
    ),
)

# For the process that starts a job's engines.
PATCHES = (
    *CPU_PATCHES,
    *JOB_PATCHES,
    Patch(
        name="step-metrics",
        target="verl.utils.tracking:Tracking.__init__",
        make_replacement=_with_step_logger,
        reason="Tracking accepts only its own list of backends, and it is the one place that both trainers pass "
        "once a step. One more backend is added, first, which completes the step's metrics; wandb goes on with "
        "the run of a job that resumes, and gets the run's page; in jobs of this rollout name only.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"7c48e9fec63fa266a0c51f83dd13e3128a227b2c2ddfcdd7e9de92dfeb8b477b"}),
        remove_when="Tracking accepts logger backends from outside.",
    ),
)


def plugin_status() -> dict[str, Any]:
    """Return this package's version and patches in any process of a job.

    It is active where `import verl` loaded the plugin, and every process's patches are in. Nothing of the plugin is
    loaded here, so that it tells what was there already.
    """
    patches = {patch.name: state(patch) for patch in PATCHES}
    everywhere = {patch.name: patches[patch.name] for patch in CPU_PATCHES}
    return {
        "active": PLUGIN_MODULE in sys.modules and not unfit(everywhere),
        "efficient_rollout": __version__,
        **package_versions(("verl",)),
        "patches": patches,
    }


def require_plugin() -> None:
    """Raise PluginInactiveError where the plugin did not load in this process, one of a job's."""
    if not plugin_status()["active"]:
        raise PluginInactiveError(
            "the plugin of efficient_rollout did not load in the processes of the job, although it did in the one that "
            f"started it: {HOW_TO_LOAD}"
        )
