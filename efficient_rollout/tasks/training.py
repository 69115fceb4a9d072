"""Training an embedded policy from scratch, on worked answers, until it is partly right; and measuring how right."""

import logging
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.files import write_json
from efficient_rollout.tasks.arithmetic import DATA_SOURCE, Level, Problem, take
from efficient_rollout.tasks.reward import compute_score
from efficient_rollout.tasks.tokenizer import EOS, VOCAB_SIZE, build_tokenizer, prompt_tokens, vocabulary
from efficient_rollout.tasks.training_plans import (
    CARD_FILE,
    MAX_ACCURACY,
    MAX_POSITIONS,
    MIN_ACCURACY,
    Schedule,
    TrainingPlan,
)

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a position that is not trained on, as transformers' losses expect."""

_POOL_PROBLEMS = 4096
_MEASURED_TOKENS = 16384  # of a batch that is sampled
_PROGRESS_SECONDS = 4.0


class WorkedAnswerBatches:
    """Holds batches. Item i is a whole one; it depends on the arguments and i alone, so it is the same in every run.

    Problems are drawn in pools, sorted by length within a pool, and cut where a batch would exceed its budget: little
    padding, and every batch costs about the same.
    """

    def __init__(self, level: Level, schedule: Schedule, seed: int) -> None:
        self._level, self._easy_level = level, level.capped(schedule.easy_response_tokens)
        self._schedule, self._seed = schedule, seed
        self._token_ids = {token: index for index, token in enumerate(vocabulary())}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return batch `index`: `input_ids` and `labels`, each (problems, tokens), int64.

        Padding is on the right, where causal attention never looks back at it, so no attention mask is needed.
        """
        level = self._easy_level if index < self._schedule.easy_steps else self._level
        pool_index, position = divmod(index, len(self._pool(level, 0)))
        pool = self._pool(level, pool_index)  # pools differ a little in length: a longer one's surplus is not used
        return self._collate(pool[position % len(pool)])

    @lru_cache(maxsize=3)  # noqa: B019 - lives as long as the training run
    def _pool(self, level: Level, pool_index: int) -> list[list[Problem]]:
        problems = take(level, "train", self._seed * 1_000_003 + pool_index, _POOL_PROBLEMS)
        batches: list[list[Problem]] = [[]]
        for problem in sorted(problems, key=_sequence_tokens):
            if (len(batches[-1]) + 1) * _sequence_tokens(problem) > self._schedule.batch_tokens:
                batches.append([])
            batches[-1].append(problem)
        random.Random(pool_index).shuffle(batches)
        return batches

    def _collate(self, problems: list[Problem]) -> dict[str, torch.Tensor]:
        input_ids = torch.zeros(len(problems), max(map(_sequence_tokens, problems)), dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORED)
        for row, problem in enumerate(problems):
            prompt = prompt_tokens(problem.question)
            tokens = [self._token_ids[token] for token in (*prompt, *problem.worked_answer, EOS)]
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, len(prompt) : len(tokens)] = input_ids[row, len(prompt) : len(tokens)]
        return {"input_ids": input_ids, "labels": labels}


def _sequence_tokens(problem: Problem) -> int:
    return len(prompt_tokens(problem.question)) + problem.num_response_tokens


def train(plan: TrainingPlan, directory: Path) -> None:
    """Train the plan's policy; leave bfloat16 weights, tokenizer and `CARD_FILE` in `directory`.

    With one thread, as here, training does not stall where other work keeps the cores busy, and ends with the same
    weights on every machine with the same kind of processor and the same libraries. What the card says was measured on
    the weights as they are written, computed with in float32.

    Raises:
        EfficientRolloutError: The policy is not partly right when training ends.
    """
    tokenizer = build_tokenizer(MAX_POSITIONS)
    set_seed(plan.seed)
    model = _build_model(plan.shape, tokenizer)
    with _one_thread():
        num_steps = _optimize(model, tokenizer, plan)
        model.to(torch.bfloat16).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        logger.info("measuring the policy on %d problems", plan.final_problems)
        result = measure(model.float(), tokenizer, plan.level, plan.final_problems, seed=1)
    _check_partly_right(plan, result)
    card = {
        "plan": plan.as_dict(),
        "num_parameters": model.num_parameters(),
        "measured": asdict(result),
        "steps": num_steps,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(directory / CARD_FILE, card)


def _build_model(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a Qwen3 decoder of this shape with freshly drawn float32 weights."""
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Qwen3Config(
        **shape,
        vocab_size=VOCAB_SIZE,
        initializer_range=shape["hidden_size"] ** -0.5,
        max_position_embeddings=MAX_POSITIONS,
        **ends,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(**ends, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return model


def _optimize(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: TrainingPlan) -> int:
    """Train `model` in place by the plan's schedule; return the number of steps."""
    schedule = plan.schedule
    batches = WorkedAnswerBatches(plan.level, schedule, plan.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / schedule.warmup_steps, 1.0, schedule.warmup_steps - 1)
    model.train()
    said = time.monotonic()
    for step in range(1, schedule.max_steps + 1):
        loss = model(**batches[step - 1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        if time.monotonic() - said > _PROGRESS_SECONDS:
            logger.info("step %d of at most %d, loss %.3f", step, schedule.max_steps, loss.item())
            said = time.monotonic()
        if step > schedule.easy_steps and step % schedule.measure_steps == 0:
            accuracy = measure(model, tokenizer, plan.level, schedule.measure_problems, seed=0).accuracy
            logger.info("step %d, accuracy %.2f (target %.2f)", step, accuracy, schedule.stop_accuracy)
            if accuracy >= schedule.stop_accuracy:
                return step
    return schedule.max_steps


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch's operators to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_partly_right(plan: TrainingPlan, result: "Measurement") -> None:
    if not MIN_ACCURACY <= result.accuracy <= MAX_ACCURACY:
        raise EfficientRolloutError(
            f"the policy answers {result.accuracy:.0%} of validation problems right after training, outside "
            f"{MIN_ACCURACY:.0%} to {MAX_ACCURACY:.0%}, where reinforcement learning has something to do; try another "
            f"--seed than {plan.seed}"
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """Holds the share of right answers, sampled at temperature 1, and their lengths in tokens, the end included."""

    num_problems: int
    accuracy: float
    length_mean: float
    length_max: int


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, level: Level, num_problems: int, *, seed: int
) -> Measurement:
    """Sample one response to each of so many validation problems, and score them; `seed` draws both."""
    was_training = model.training
    model.eval()
    lengths, scores = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch, limit in _batches(take(level, "validation", seed, num_problems), level):
            for problem, response in zip(batch, _sample(model, tokenizer, batch, limit), strict=True):
                text = tokenizer.decode(response, skip_special_tokens=True)
                scores.append(compute_score(DATA_SOURCE, text, problem.answer)["acc"])
                lengths.append(len(response))
    model.train(was_training)
    return Measurement(num_problems, statistics.mean(scores), statistics.mean(lengths), max(lengths))


def _batches(problems: list[Problem], level: Level) -> list[tuple[list[Problem], int]]:
    """Return problems of similar length together, and the length limit of their responses, in tokens.

    A response may be half as long again as the longest worked answer of its batch, and never longer than the level
    allows. Long answers go in small batches: the cache of a batch is copied at every token.
    """
    batches: list[tuple[list[Problem], int]] = []
    for problem in sorted(problems, key=lambda problem: problem.num_response_tokens):
        limit = min(level.max_response_tokens, problem.num_response_tokens * 3 // 2 + 8)
        if batches and (len(batches[-1][0]) + 1) * limit <= _MEASURED_TOKENS:
            batches[-1] = ([*batches[-1][0], problem], limit)
        else:
            batches.append(([problem], limit))
    return batches


def _sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], max_new_tokens: int
) -> Iterator[list[int]]:
    """Sample one response per problem, up to and including the end-of-sequence token."""
    prompts = ["".join(prompt_tokens(problem.question)) for problem in problems]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=max_new_tokens,
            use_cache=True, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        )  # fmt: skip
    for response in output[:, encoded.input_ids.shape[1] :].tolist():
        ends = response.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in response else len(response)
        yield response[:ends]
