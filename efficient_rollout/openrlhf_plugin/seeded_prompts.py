"""Where each prompt of a run stands, which its samples' seeds are made of, and whether it is evaluated.

Not the prompt's text: a data set may hold a prompt twice, a run asks for one again in every episode, and an evaluation
may ask what a step asks. And no count of an engine's: that begins again where a run resumes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

Place = tuple[str, int, int]
EVALUATION = "evaluation"


class PromptPlaces:
    """Keeps places of prompts in the order in which they go out to the engines.

    Attributes:
        num_prompts: Sent out for training so far, what OpenRLHF calls consumed and keeps in its checkpoints.
    """

    def __init__(self) -> None:
        self.num_prompts = 0
        self._is_evaluating = False
        # Evaluated since so many prompts were sent out for training.
        self._evaluated = (0, 0)

    def next_place(self) -> Place:
        """Return the place of the prompt that goes out now."""
        if not self._is_evaluating:
            self.num_prompts += 1
            return ("training", self.num_prompts - 1, 0)
        since, number = self._evaluated
        number = number if since == self.num_prompts else 0
        self._evaluated = (self.num_prompts, number + 1)
        return (EVALUATION, self.num_prompts, number)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let prompts go out to be evaluated, within the block."""
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False


class _PlacedEngine:
    """Is an engine's handle whose requests for samples say where their prompt stands."""

    def __init__(self, handle: Any, places: PromptPlaces) -> None:
        self._handle = handle
        ask = handle.generate_responses.remote
        self.generate_responses = SimpleNamespace(remote=lambda **given: ask(**given, place=places.next_place()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def place_prompts(generator: Any, places: PromptPlaces) -> None:
    """Let OpenRLHF's `SamplesGenerator` tell its engines the place of each prompt."""
    generator.vllm_engines = [_PlacedEngine(engine, places) for engine in generator.vllm_engines]
    # A decorator of the method that stands there.
    generator.generate_eval_samples = places.evaluating()(generator.generate_eval_samples)


def in_order(samples: list[Any], *, num_samples: int) -> list[Any]:
    """Return samples of a step, prompt after prompt, in an order that does not tell which prompt was answered first.

    The `num_samples` of each prompt stay together and as they are.
    """

    def what_it_says(group: list[Any]) -> Any:
        return [(sample.prompts, sample.labels, sample.sequences.tolist()) for sample in group]

    groups = [samples[start : start + num_samples] for start in range(0, len(samples), num_samples)]
    return [sample for group in sorted(groups, key=what_it_says) for sample in group]
