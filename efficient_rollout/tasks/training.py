"""Training an embedded policy on worked answers until it is partly right, from scratch or by way of a small core."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.files import write_json
from efficient_rollout.tasks.arithmetic import Level
from efficient_rollout.tasks.batches import WorkedAnswerBatches
from efficient_rollout.tasks.callbacks import Progress, StopWhenPartlyRight
from efficient_rollout.tasks.evaluation import Measurement, measure
from efficient_rollout.tasks.growth import grow
from efficient_rollout.tasks.optimizer import make_optimizer
from efficient_rollout.tasks.policy_shape import PolicyShape
from efficient_rollout.tasks.tokenizer import VOCAB_SIZE, build_tokenizer
from efficient_rollout.tasks.training_plans import (
    CARD_FILE,
    MAX_ACCURACY,
    MAX_POSITIONS,
    MIN_ACCURACY,
    TRAINED_FILE,
    Schedule,
    TrainingPlan,
)


def build_model(shape: PolicyShape, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 decoder of this shape with freshly drawn float32 weights."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        initializer_range=shape.hidden_size**-0.5,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return model


def train(plan: TrainingPlan, work_dir: Path) -> None:
    """Train the plan's policy; leave float32 weights, tokenizer and `CARD_FILE` in `work_dir`.

    Weights are written before they are measured. Where `work_dir` holds those of this plan, with `TRAINED_FILE`, an
    interrupted call is taken up there.

    Raises:
        EfficientRolloutError: The policy is not partly right when training ends.
    """
    tokenizer = build_tokenizer(MAX_POSITIONS)
    with Progress(f"{plan.size} policy") as progress:
        is_taken_up = (work_dir / TRAINED_FILE).is_file()
        if not is_taken_up:
            _train_and_save(plan, tokenizer, work_dir, progress)
        trained = json.loads((work_dir / TRAINED_FILE).read_text())
        trained_seconds = sum(stage["seconds"] for stage in trained["stages"]) if is_taken_up else 0.0
        model = Qwen3ForCausalLM.from_pretrained(work_dir, local_files_only=True)

        def measured(share: float) -> None:
            progress.status = f"measuring the finished policy, {share:.0%}"

        measured(0.0)
        with _threads((plan.growth.schedule if plan.growth else plan.schedule).num_threads):
            result = measure(model, tokenizer, plan.level, plan.final_problems, seed=1, on_progress=measured)
        _check_partly_right(plan, result)
        card = {
            "plan": plan.as_dict(),
            "num_parameters": model.num_parameters(),
            "measured": asdict(result),
            "training": {"stages": trained["stages"], "seconds": round(trained_seconds + progress.seconds, 1)},
            "torch": version("torch"),
        }
    (work_dir / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")


def _train_and_save(plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast, work_dir: Path, progress: Progress) -> None:
    set_seed(plan.seed)
    growth = plan.growth
    model = build_model(growth.core if growth else plan.shape, tokenizer)

    def train_stage(model: Qwen3ForCausalLM, level: Level, schedule: Schedule) -> dict[str, float]:
        return _train_stage(model, tokenizer, level, schedule, plan.seed, work_dir, progress)

    first_level = plan.level.capped(growth.core_response_tokens) if growth else plan.level
    stages = [train_stage(model, first_level, plan.schedule)]
    if growth:
        stages.append(train_stage(model, plan.level, growth.core_schedule))
        model = grow(model, plan.shape, spread=growth.spread)
        stages.append(train_stage(model, plan.level, growth.schedule))
    model.config.use_cache = True  # the Trainer turns it off
    model.save_pretrained(work_dir)
    tokenizer.save_pretrained(work_dir)
    # Last, whole: it says that the weights are.
    write_json(work_dir / TRAINED_FILE, {"plan": plan.as_dict(), "stages": stages})


def _train_stage(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    level: Level,
    schedule: Schedule,
    seed: int,
    work_dir: Path,
    progress: Progress,
) -> dict[str, float]:
    """Train `model` in place, by `schedule`; returns how many parameters, steps, seconds and threads that took."""

    def measured(num_problems: int) -> Measurement:
        return measure(model, tokenizer, level, num_problems, seed=0)

    before_seconds = progress.seconds
    with _threads(schedule.num_threads):
        trainer = _trainer(model, WorkedAnswerBatches(level, schedule, seed), schedule, seed, work_dir)
        trainer.add_callback(StopWhenPartlyRight(schedule, progress, measured))
        trainer.train()
        return {
            "num_parameters": model.num_parameters(),
            "steps": trainer.state.global_step,
            "seconds": round(progress.seconds - before_seconds, 1),
            "num_threads": torch.get_num_threads(),
        }


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Limit torch's operators to so many threads; None leaves them alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trainer(
    model: Qwen3ForCausalLM, batches: WorkedAnswerBatches, schedule: Schedule, seed: int, work_dir: Path
) -> Trainer:
    """A Trainer that takes whole batches in order, saves nothing, and leaves logging and stopping to a callback."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work_dir / "trainer"),
            per_device_train_batch_size=1,  # a dataset item is a whole batch
            train_sampling_strategy="sequential",
            max_steps=schedule.max_steps,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=schedule.warmup_steps,
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
        ),
        train_dataset=batches,
        data_collator=lambda items: items[0],
        optimizers=(make_optimizer(schedule.optimizer, model, schedule.learning_rate), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_partly_right(plan: TrainingPlan, result: Measurement) -> None:
    if not MIN_ACCURACY <= result.accuracy <= MAX_ACCURACY:
        raise EfficientRolloutError(
            f"the {plan.size} policy answers {result.accuracy:.0%} of validation problems right after training, "
            f"outside {MIN_ACCURACY:.0%} to {MAX_ACCURACY:.0%}, where reinforcement learning has something to do; "
            f"try another --seed than {plan.seed}"
        )
