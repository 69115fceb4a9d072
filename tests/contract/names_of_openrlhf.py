"""Every name of OpenRLHF's that this package imports, those that are replaced in their modules among them."""

OF_OPENRLHF = (
    "openrlhf.trainer:ppo_trainer.PPOTrainer",
    "openrlhf.trainer:ppo_trainer_async.GenerateSamplesActor",
    "openrlhf.trainer:ppo_trainer_async.PPOTrainerAsync",
    "openrlhf.trainer:ppo_trainer_async.TrainingActor",
    "openrlhf.trainer.ray:launcher.ReferenceModelActor",
    "openrlhf.trainer.ray:launcher.RewardModelActor",
    "openrlhf.trainer.ray:ppo_actor.PolicyModelActor",
    "openrlhf.trainer.ray:ppo_critic.CriticModelActor",
    "openrlhf.trainer.ray:vllm_engine.RolloutRayActor",
    "openrlhf.trainer.ray.utils:get_physical_gpu_id",
    "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap",
    "openrlhf.utils:config.hierarchize",
)
