"""Training an embedded policy from scratch on worked answers, until it is partly right."""

import json
import logging
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
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.tasks.batches import WorkedAnswerBatches
from efficient_rollout.tasks.callbacks import Progress, StopWhenPartlyRight
from efficient_rollout.tasks.evaluation import Measurement, measure
from efficient_rollout.tasks.optimizer import MuonAndAdamW
from efficient_rollout.tasks.policy import RECIPE_FILE
from efficient_rollout.tasks.recipes import MAX_ACCURACY, MAX_POSITIONS, MIN_ACCURACY, Recipe
from efficient_rollout.tasks.tokenizer import VOCAB_SIZE, build_tokenizer

logger = logging.getLogger(__name__)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 decoder of the recipe's shape with freshly drawn float32 weights."""
    shape = recipe.shape
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


def train(recipe: Recipe, work_dir: Path) -> None:
    """Train the recipe's policy; leave weights, tokenizer and `RECIPE_FILE` in `work_dir`.

    A resumable recipe continues from the newest complete checkpoint in `work_dir/trainer`, if there is one.

    Raises:
        EfficientRolloutError: The policy is not partly right when training ends.
    """
    set_seed(recipe.seed)
    tokenizer = build_tokenizer(MAX_POSITIONS)
    model = build_model(recipe, tokenizer)
    with Progress(f"{recipe.size} policy") as progress, _threads(recipe.schedule.num_threads):

        def measured(num_problems: int, seed: int) -> Measurement:
            return measure(model, tokenizer, recipe.level, num_problems, seed=seed)

        stop = StopWhenPartlyRight(recipe.schedule, progress, lambda: measured(recipe.schedule.eval_problems, seed=0))
        trainer = _trainer(recipe, model, work_dir / "trainer", stop)
        trainer.train(resume_from_checkpoint=_newest_checkpoint(work_dir / "trainer"))
        progress.status = "measuring the finished policy"
        model.to(getattr(torch, recipe.shape.dtype))
        result = measured(recipe.schedule.final_problems, seed=1)
        _check_partly_right(recipe, result)
        model.config.use_cache = True  # the Trainer turns it off
        model.save_pretrained(work_dir)
        tokenizer.save_pretrained(work_dir)
        num_threads = torch.get_num_threads()
    card = {
        "recipe": recipe.as_dict(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "measured": asdict(result),
        "training": {"steps": trainer.state.global_step, "seconds": round(stop.seconds, 1), "num_threads": num_threads},
        "torch": version("torch"),
    }
    (work_dir / RECIPE_FILE).write_text(json.dumps(card, indent=2) + "\n")


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Limit torch's operators to so many threads; None leaves them alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trainer(recipe: Recipe, model: Qwen3ForCausalLM, trainer_dir: Path, callback: TrainerCallback) -> Trainer:
    """A Trainer that takes whole batches in order, and leaves saving, logging and stopping to the callback."""
    schedule = recipe.schedule
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(trainer_dir),
            per_device_train_batch_size=1,  # a dataset item is a whole batch
            train_sampling_strategy="sequential",
            max_steps=schedule.max_steps,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=schedule.warmup_steps,
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            save_total_limit=2,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=recipe.seed,
        ),
        train_dataset=WorkedAnswerBatches(recipe.level, schedule, recipe.seed),
        data_collator=lambda items: items[0],
        optimizers=(MuonAndAdamW(model, schedule.learning_rate, weight_decay=0.01), None),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_partly_right(recipe: Recipe, result: Measurement) -> None:
    if not MIN_ACCURACY <= result.accuracy <= MAX_ACCURACY:
        raise EfficientRolloutError(
            f"the {recipe.size} policy answers {result.accuracy:.0%} of validation problems right after training, "
            f"outside {MIN_ACCURACY:.0%} to {MAX_ACCURACY:.0%}, where reinforcement learning has something to do; "
            f"try another --seed than {recipe.seed}"
        )


def _newest_checkpoint(trainer_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state is its last file."""
    found = []
    for state_file in trainer_dir.glob("checkpoint-*/trainer_state.json"):
        try:
            found.append((json.loads(state_file.read_text())["global_step"], state_file.parent))
        except json.JSONDecodeError:
            logger.warning("ignoring %s: it was not written to its end", state_file.parent)
    return str(max(found)[1]) if found else None
