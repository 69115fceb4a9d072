"""Where this package meets OpenRLHF's code, and how that code looked when it was written for it."""

from collections.abc import Mapping

from efficient_rollout.errors import PatchDriftError
from efficient_rollout.patching import resolve, source_sha256
from efficient_rollout.provenance import package_versions

TESTED_VERSIONS = "0.11.2"
_ACTOR = "__ray_metadata__.modified_class"

# Functions of OpenRLHF's that are replaced, overridden, or relied on in the way they call, by the begin of their names
# -> of their source in the tested versions. Above each group, what this package takes from it.
SHA256 = {
    # create_vllm_engines calls RolloutRayActor.options(...).remote(**arguments), with model, dtype and enforce_eager;
    # what __init__ leaves of them goes to vLLM. With backend 'ray', _configure_device_env lets an engine see GPUs that
    # Ray hides. Every request of a rollout passes generate; generate_responses asks for all samples of a prompt, and
    # takes them in any order. A sync is one call a parameter, to every worker.
    "openrlhf.trainer.ray.vllm_engine:": {
        "create_vllm_engines": "af57ea163173675fedda69846d6fcb84fa5f67843df8e175372f083e1904ac51",
    },
    f"openrlhf.trainer.ray.vllm_engine:RolloutRayActor.{_ACTOR}.": {
        "__init__": "b477b017b6f5ff72902f2bb12e77e2594f41a9c46ccfcb5ca93b827bb339d155",
        "_configure_device_env": "b5fcb17f70a80b613b50c082ac6332a475dd32d92f6df4743ffbbd1751315c2e",
        "generate": "a1c7276aea26dcb85291fd5c730030247dc841fe6a1597b962482a2ce5a7363a",
        "generate_responses": "0a4c58b5a1ec45b24a8036b7d72622b5c743b1de5d98c87b362205ed54bbe0db",
        "update_weight": "4ae3eb47981a5cc7603e4cd22f9972d65d252c7533026cd36bfc2df99a476509",
        "update_weight_cuda_ipc": "384f5ffdfbb74a8b03f3069882feb451ed34c35d92690735d7896032bccb5180",
    },
    # Sends every parameter once, and marks the last with empty_cache.
    "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.": {
        "broadcast_to_vllm": "a7ed79f664d6b9c0c6a5be28a36427616cd6881b3a2297647ca8ac04203ffccd",
    },
    # init_process_group keeps _model_update_group and _model_update_with_ray; the others are overridden.
    "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap.": {
        "init_process_group": "b2e83541fdb77861ed256b3d70024b2e3e42e49001b7d7b25a084e994f7bbe1c",
        "update_weight": "56385ee35e927259696e9d0fde8b3c98b61497461709a831a2fcdd7ba51bb583",
        "update_weight_cuda_ipc": "27e6d2c8bb0f3703b0afa7523c645bc6a22abc819445e819c5e3db66d6ccdd94",
    },
    # Saves logs once a step, and `best_global_step` with the step's number where its best value rises; resumes from the
    # newest checkpoint under `_actor`, with ckpt.load_enable alone; takes a step's samples in any order of prompts;
    # _compute_rollout_stats goes into the logs; evaluate returns those of an evaluation.
    "openrlhf.trainer.ppo_trainer:BasePPOTrainer.": {
        "save_logs_and_checkpoints": "616d0be4a78443e998bf4ed6963384d1dfee0ff8de5e489c064114a6bc28c920",
        "save_best_checkpoint": "1af3e7102036e4bbbb5a7c27a393adcb6e22f08be7d14f47e6c4a8e8c049f7e2",
        "init_checkpoint_states": "bfecd4414c252ea87cf6093ca4d93b019c28d6815e1391c23eab25d7b57039c8",
        "train_step": "06fbbd9f0f5e497d10679353f1fc504157af2fcf8333fdc1c8bfeb20a60d866c",
        "_compute_rollout_stats": "13f76035b8da21ea2b45eb07f580a978ea9b2ae8ecf10e65708bc1603eff25b3",
    },
    f"openrlhf.trainer.ppo_trainer:PPOTrainer.{_ACTOR}.": {
        "evaluate": "86c9809e82083c472ea32ad90830b670a64f9e9191c71fd2727ee7c0d35f2d9e",
    },
    # Calls wandb.init without an id, and keeps wandb as its handle, which logs a step with train/global_step.
    "openrlhf.utils.logging_utils:WandbLogger.": {
        "__init__": "51d417356e20d8b8943e6990a56d616c321e865248025df42a235a36bbdde086",
        "log_train": "68113c98b69cc3f287da5dfed70ba00e6ba2119574b9b15e1fd9a8581ff5f1bf",
        "close": "55014d3d74d32750d7063bdec62a4f8dadbe8cc547b6392634b03c8e75fb7ea5",
    },
    # Pauses the engines, syncs, and resumes; hands every evaluation to save_best_checkpoint.
    f"openrlhf.trainer.ppo_trainer_async:TrainingActor.{_ACTOR}.": {
        "broadcast_to_vllm": "23e5d83c58ca495eefd2c0936354c341d8e6009b1b5eea2c9263ba3bfdfeaeb0",
        "fit": "cf19b46aa0d57c4136557251bb25cb044bb4f8be6af7d03b24a4a773c42a5f91",
    },
    # Starts both halves by their names in the module.
    f"openrlhf.trainer.ppo_trainer_async:PPOTrainerAsync.{_ACTOR}.": {
        "__init__": "a4ff3e746e06977fb835bf7e99e172ea8922d184d03d270caff61513464b5006",
    },
    # Returns the logs of an evaluation, beside which no rollout runs.
    f"openrlhf.trainer.ppo_trainer_async:GenerateSamplesActor.{_ACTOR}.": {
        "_run_eval": "5474cb501465689d1cbf5a84f09a3c390e315d283290571dd584fa470e7c3dc8",
    },
    # Asks engines for the samples of prompt after prompt, by keyword.
    "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator.": {
        "_dispatch_prompts_to_vllm": "a5b0d5d17e1a1504f04e6cb74fe8e6c2914d74d088dc9c3a2f9df19d2e200b49",
    },
    # Every parsed argument passes it before Ray starts.
    "openrlhf.utils.config:": {
        "hierarchize": "b1125e611a024351c8fce92fbf3d992dc958d671792cfbae231ca660fb490629",
    },
}


def check_seams(seams: Mapping[str, Mapping[str, str]] = SHA256) -> None:
    """Refuse an OpenRLHF whose code at a seam is another.

    Raises:
        PatchDriftError: Names every such place.
    """
    targets = {owner + name: sha256 for owner, names in seams.items() for name, sha256 in names.items()}
    drifted = [target for target, sha256 in targets.items() if _digest(target) != sha256]
    if drifted:
        raise PatchDriftError(
            f"openrlhf {package_versions(('openrlhf',)).get('openrlhf')} is not the code that this package was written "
            f"for (tested: {TESTED_VERSIONS}), at {', '.join(drifted)}: install a tested version, or undo the change"
        )


def _digest(target: str) -> str | None:
    try:
        return source_sha256(resolve(target)[2])
    except (AttributeError, ModuleNotFoundError):
        return None
