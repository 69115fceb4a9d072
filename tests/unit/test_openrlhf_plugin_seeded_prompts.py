"""Seeds of an OpenRLHF run's requests, through its own generator of samples; no engine is needed for them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - first: what this machine lacks

# isort: split

import torch
from openrlhf.trainer.ppo_utils import samples_generator as stock
from openrlhf.utils.agent import AgentExecutorBase
from vllm import SamplingParams

from efficient_rollout.errors import PluginInactiveError
from efficient_rollout.openrlhf_plugin.engine_actor import EngineActor
from efficient_rollout.openrlhf_plugin.seeded_prompts import PromptPlaces, in_order, place_prompts

NUM_SAMPLES = 3


class Branching(AgentExecutorBase):
    """Asks two things of the same length side by side, and one of them again, with a seed of its own if it has one."""

    def __init__(self, own_seed: int | None) -> None:
        self.own_seed = own_seed

    async def execute(self, *, prompt: str, sampling_params: SamplingParams, llm_engine: Any, **_: Any) -> str:
        if self.own_seed is not None:
            sampling_params = sampling_params.clone()
            sampling_params.seed = self.own_seed
        turns = [[ord(letter) for letter in prompt], [ord(letter) + 1 for letter in prompt]]
        await asyncio.gather(*(llm_engine.generate(turn, sampling_params) for turn in turns))
        await llm_engine.generate(turns[0], sampling_params)
        return prompt


class Recorded(EngineActor):
    """Without an engine: what it would be asked is written down, by phase."""

    def __init__(
        self,
        seeds: dict[bool, list[int | None]],
        own_seed: int | None,
        rollout_seed: int | None,
        longest: int | None = None,
    ) -> None:
        self.executor, self._rollout_seed, self.seeds = Branching(own_seed), rollout_seed, seeds
        self._longest_evaluated, self.words = longest, []
        self._evaluation, self._rollouts = None, SimpleNamespace(request_came=int, response_went=int)
        self.llm = SimpleNamespace(generate=self._answer)
        self.is_evaluating = False

    async def _answer(self, _prompt: Any, params: SamplingParams, **_: Any) -> Any:
        self.seeds[self.is_evaluating].append(params.seed)
        self.words.append(params.extra_args)
        await asyncio.sleep(0)
        yield None


class Handle:
    """Calls an actor as Ray does, in this process."""

    def __init__(self, actor: Recorded) -> None:
        self.generate_responses = SimpleNamespace(remote=lambda **given: self._call(actor, given))
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: 0)

    def _call(self, actor: Recorded, given: dict[str, Any]) -> list[str]:
        return asyncio.run(actor.generate_responses(**given))


class Run:
    """A run's requests, on so many engines, after so many prompts."""

    def __init__(
        self,
        *,
        num_engines: int = 1,
        consumed: int = 0,
        own_seed: int | None = None,
        rollout_seed: int | None = 7,
        longest: int | None = None,
    ) -> None:
        self.seeds: dict[bool, list[int | None]] = {False: [], True: []}
        self.actors = [Recorded(self.seeds, own_seed, rollout_seed, longest) for _ in range(num_engines)]
        self.places = PromptPlaces()
        self.places.num_prompts = consumed
        advantage = SimpleNamespace(is_correction_level="off")
        self.generator = stock.SamplesGenerator.__new__(stock.SamplesGenerator)
        self.generator.args = SimpleNamespace(
            algo=SimpleNamespace(advantage=advantage), vllm=SimpleNamespace(enable_sleep=False),
            rollout=SimpleNamespace(batch_size=8, n_samples_per_prompt=NUM_SAMPLES),
        )  # fmt: skip
        self.generator.tokenizer = None
        self.generator.vllm_engines = [Handle(actor) for actor in self.actors]
        place_prompts(self.generator, self.places)

    def ask(self, prompts: list[str]) -> list[int | None]:
        """Through OpenRLHF's own dispatch."""
        before = len(self.seeds[False])
        given = {"n_samples_per_prompt": NUM_SAMPLES, "max_new_tokens": 4}
        self.generator._dispatch_prompts_to_vllm(prompts, [""] * len(prompts), **given)
        return self.seeds[False][before:]

    def evaluate(self, prompts: list[str]) -> list[int | None]:
        """Through OpenRLHF's own evaluation."""
        before = len(self.seeds[True])
        self.generator.eval_dataloader = [(None, [prompt], [""], [None]) for prompt in prompts]
        for actor in self.actors:
            actor.is_evaluating = True
        self.generator.generate_eval_samples(n_samples_per_prompt=NUM_SAMPLES, max_new_tokens=4)
        for actor in self.actors:
            actor.is_evaluating = False
        return self.seeds[True][before:]


@pytest.fixture(autouse=True)
def _ray_in_this_process(monkeypatch) -> None:
    local = SimpleNamespace(get=lambda refs: [] if refs and isinstance(refs[0], str) else refs,
                            wait=lambda refs, **_: (refs, []))  # fmt: skip
    monkeypatch.setattr(stock, "ray", local)


@pytest.mark.parametrize("own_seed", [None, 42])
@pytest.mark.parametrize("num_engines", [1, 2])
def test_no_two_requests_of_a_run_share_a_seed(num_engines, own_seed):
    run = Run(num_engines=num_engines, own_seed=own_seed)
    prompts = ["a", "b", "a", "a"]  # of a data set that holds one three times
    found = []
    for _ in range(3):
        # Twice between two syncs, as where groups are filtered out; then the same prompts are evaluated, twice.
        found += [*run.ask(prompts), *run.ask(prompts), *run.evaluate(prompts), *run.evaluate(prompts)]
    assert None not in found
    assert len(set(found)) == len(found) == 3 * 4 * 4 * NUM_SAMPLES * 3


def test_seeds_do_not_depend_on_how_many_engines_there_are():
    prompts = ["a", "b", "a", "c"]
    one, other = (Run(num_engines=number) for number in (1, 3))
    for _ in range(2):
        assert one.ask(prompts) == other.ask(prompts)
        assert one.evaluate(prompts) == other.evaluate(prompts)


def test_a_run_that_resumes_has_the_seeds_that_it_would_have_had():
    prompts = ["a", "b", "a", "c"]
    whole = Run()
    first, second = whole.ask(prompts), whole.ask(prompts)
    resumed = Run(consumed=len(prompts)).ask(prompts)
    assert resumed == second
    assert not set(resumed) & set(first)


@pytest.mark.parametrize("rollout_seed", [None, 7])
def test_evaluations_alone_have_their_longest_draft(rollout_seed):
    run = Run(rollout_seed=rollout_seed, longest=0)
    (actor,) = run.actors
    for ask, word in ((run.ask, None), (run.evaluate, {"efficient_rollout": {"max_draft_tokens": 0}}), (run.ask, None)):
        actor.words.clear()
        ask(["a", "b"])
        assert actor.words == [word] * (2 * NUM_SAMPLES * 3)


@pytest.mark.parametrize("settings", [(7, None), (None, 0)])
def test_a_prompt_that_did_not_go_out_through_this_package_is_refused(settings):
    actor = Recorded({False: [], True: []}, None, *settings)
    given = {"prompt": "a", "label": "", "sampling_params": SamplingParams(), "max_length": 8, "hf_tokenizer": None}
    with pytest.raises(PluginInactiveError, match="did not go out through this package"):
        asyncio.run(actor.generate_responses(**given))


def test_without_the_setting_no_request_has_a_seed():
    actor = Recorded({False: [], True: []}, None, None)
    given = {"prompt": "a", "label": "", "sampling_params": SamplingParams(), "max_length": 8, "hf_tokenizer": None}
    assert asyncio.run(actor.generate_responses(**given, num_samples=2)) == ["a", "a"]
    assert actor.seeds[False] == [None] * 6


def test_a_steps_groups_are_put_in_order_and_stay_whole():
    def group(prompt: str, *tokens: int) -> list[Any]:
        return [SimpleNamespace(prompts=[prompt], labels=[""], sequences=torch.tensor([[token]])) for token in tokens]

    groups = [group("b", 1, 2), group("a", 9, 3), group("a", 4, 8)]
    wanted = [*group("a", 4, 8), *group("a", 9, 3), *group("b", 1, 2)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        samples = [sample for index in order for sample in groups[index]]
        found = in_order(samples, num_samples=2)
        assert [(sample.prompts, int(sample.sequences)) for sample in found] == [
            (sample.prompts, int(sample.sequences)) for sample in wanted
        ]
