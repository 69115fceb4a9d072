"""The manager of agent loops that a reproducible job gets, and what its requests get through veRL's own scheduling."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")

from verl import DataProto
from verl.experimental.agent_loop import agent_loop as stock
from verl.trainer.ppo.v1 import agent_loop_tq as stock_tq
from verl.utils import tensordict_utils
from verl.utils.import_utils import load_extern_type

from efficient_rollout.errors import ConfigError
from efficient_rollout.verl_plugin.checks import name_agent_loops
from efficient_rollout.verl_plugin.compose import compose_config
from efficient_rollout.verl_plugin.replay_buffer import OrderedReplayBuffer
from efficient_rollout.verl_plugin.seeded_loops import (
    PLACE,
    SeededManager,
    SeededManagerTQ,
    SeededWorker,
    SeededWorkerTQ,
)
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, job_settings

LONGEST = "controller.validation_max_draft_tokens=0"
MANAGER = "+actor_rollout_ref.rollout.agent.agent_loop_manager_class"


def chosen(*overrides: str) -> str | None:
    config = compose_config(["size=nano", *overrides])
    name_agent_loops(config, job_settings(config))
    return config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")


@pytest.mark.parametrize(("use_v1", "manager"), [(True, SeededManagerTQ), (False, SeededManager)])
def test_each_trainer_has_its_own(use_v1, manager):
    name = f"{manager.__module__}.{manager.__name__}"
    wanted = (f"{SETTINGS_PATH}.rollout_seed=0", f"trainer.use_v1={use_v1}")
    assert chosen(*wanted) == name
    assert chosen(*wanted, f"{MANAGER}={name}") == name


def test_a_validations_longest_draft_takes_the_manager_and_leaves_the_replay_buffer():
    wanted = f"{SETTINGS_PATH}.{LONGEST}"
    config = compose_config(["size=nano", wanted])
    buffer = config.trainer.v1.sampler.custom_sampler.name
    name_agent_loops(config, job_settings(config))
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class.endswith(".SeededManagerTQ")
    assert config.trainer.v1.sampler.custom_sampler.name == buffer
    with pytest.raises(ConfigError, match=r"validation_max_draft_tokens is set, and so is .*mine\.Manager"):
        chosen(wanted, f"{MANAGER}=mine.Manager")


def test_the_replay_buffer_that_is_named_exists():
    config = compose_config(["size=nano", f"{SETTINGS_PATH}.rollout_seed=0"])
    name_agent_loops(config, job_settings(config))
    sampler = config.trainer.v1.sampler.custom_sampler
    assert load_extern_type(sampler.path, sampler.name) is OrderedReplayBuffer


def test_a_job_without_a_seed_keeps_its_own():
    assert chosen() is None
    assert chosen(f"{MANAGER}=mine.Manager") == "mine.Manager"


def test_a_manager_of_the_users_own_is_refused():
    with pytest.raises(ConfigError, match=r"rollout_seed is set, and so is .*mine\.Manager"):
        chosen(f"{SETTINGS_PATH}.rollout_seed=1", f"{MANAGER}=mine.Manager")


NUM_SAMPLES = 3
Jobs = Callable[..., "Job"]


class Client:
    """In the place of veRL's client: writes down what a server would be asked."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []
        self.words: list[Any] = []

    async def generate(self, _request_id: str, *, sampling_params: dict[str, Any], **_: Any) -> None:
        self.seeds.append(sampling_params.get("seed"))
        self.words.append(sampling_params.get("extra_args"))
        await asyncio.sleep(0)


class Branching:
    """A loop that asks two things of the same length side by side, and one of them again."""

    def __init__(self, server_manager: Any, own_seed: int | None) -> None:
        self.ask, self.own_seed = server_manager.generate, own_seed

    async def run(self, sampling_params: dict[str, Any], *, raw_prompt: str, **kwargs: Any) -> Any:
        assert PLACE not in kwargs
        if self.own_seed is not None:
            sampling_params = {**sampling_params, "seed": self.own_seed}
        turns = [[ord(letter) for letter in raw_prompt], [ord(letter) + 1 for letter in raw_prompt]]
        requests = [self.ask("id", prompt_ids=turn, sampling_params=sampling_params) for turn in turns]
        await asyncio.gather(*requests)
        await self.ask("id", prompt_ids=turns[0], sampling_params=sampling_params)


class _WithoutModels:
    """A worker of veRL's without what needs a policy, a tokenizer or a queue."""

    def __init__(self, config: Any, llm_client: Client) -> None:
        self.config, self.llm_client = config, llm_client
        self.rollout_config = config.actor_rollout_ref.rollout
        self.tokenizer = self.processor = self.hf_model_type = self.dataset_cls = None
        self.tools: list[Any] = []
        self.background_tasks: set[Any] = set()

    async def _agent_loop_postprocess(self, *_: Any, **kwargs: Any) -> None:
        assert PLACE not in kwargs

    def _postprocess(self, outputs: Any, **_: Any) -> DataProto:
        return DataProto.from_dict(non_tensors={"x": np.zeros(len(outputs))}, meta_info={"metrics": []})


class Job:
    """Managers and workers of one of veRL's trainers."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, use_v1: bool, num_workers: int, own_seed: int | None, setting: str
    ) -> None:
        monkeypatch.setattr(stock, "hydra", SimpleNamespace(utils=SimpleNamespace(
            instantiate=lambda *, server_manager, **_: Branching(server_manager, own_seed))))  # fmt: skip
        monkeypatch.setitem(stock._agent_loop_registry, "branching", {})
        self.use_v1 = use_v1
        self.config = compose_config(["size=nano", f"{SETTINGS_PATH}.{setting}"])
        self.config.actor_rollout_ref.rollout.n = NUM_SAMPLES
        self.config.actor_rollout_ref.rollout.val_kwargs.n = NUM_SAMPLES
        parent = stock_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class if use_v1 else stock.AgentLoopWorker
        monkeypatch.setattr(parent, "__init__", _WithoutModels.__init__)
        for name in ("_agent_loop_postprocess", "_postprocess"):
            monkeypatch.setattr(parent, name, getattr(_WithoutModels, name))
        worker_class = SeededWorkerTQ if use_v1 else SeededWorker
        clients = [Client() for _ in range(num_workers)]
        self.workers = [worker_class(self.config, client) for client in clients]
        self.clients = clients
        manager_class = SeededManagerTQ if use_v1 else SeededManager
        self.manager = manager_class(self.config, None)
        self.manager.agent_loop_workers = [
            SimpleNamespace(generate_sequences=SimpleNamespace(remote=worker.generate_sequences))
            for worker in self.workers
        ]
        if use_v1:
            monkeypatch.setattr(stock_tq, "tq", SimpleNamespace(async_kv_put=_nothing))
            monkeypatch.setattr(stock_tq, "ray", SimpleNamespace(get=lambda calls: asyncio.run(self._settled(calls))))
        else:
            monkeypatch.setattr(manager_class, "_performance_metrics", lambda *_: {})

    async def _settled(self, calls: list[Any]) -> None:
        await asyncio.gather(*calls)
        await asyncio.gather(*(task for worker in self.workers for task in worker.background_tasks))

    def ask(self, step: int, prompts: list[str], *, validate: bool = False) -> list[int]:
        """Seeds of a call's requests, in no order."""
        before = [len(client.seeds) for client in self.clients]
        rows = {"raw_prompt": prompts, "index": [0] * len(prompts), "agent_name": ["branching"] * len(prompts)}
        if self.use_v1:
            batch = tensordict_utils.get_tensordict({**rows, "uid": [f"u{row}" for row in range(len(prompts))]})
            tensordict_utils.assign_non_tensor_data(batch, "global_steps", step)
            if validate:
                tensordict_utils.assign_non_tensor_data(batch, "validate", True)
            self.manager.generate_sequences(batch)
        else:
            columns = {name: np.array(column, dtype=object) for name, column in rows.items()}
            # A column of the data set's own, which veRL takes for the number of a sample.
            columns["priority"] = np.zeros(len(prompts), dtype=np.int64)
            batch = DataProto.from_dict(non_tensors=columns, meta_info={"global_steps": step, "validate": validate})
            self.manager.generate_sequences(batch.repeat(NUM_SAMPLES, interleave=True))
        return [seed for client, start in zip(self.clients, before, strict=True) for seed in client.seeds[start:]]


async def _nothing(**_: Any) -> None:
    """In the place of a call to the queue."""


@pytest.fixture
def job(monkeypatch) -> Jobs:
    def make(
        *, use_v1: bool, num_workers: int = 2, own_seed: int | None = None, setting: str = "rollout_seed=0"
    ) -> Job:
        return Job(monkeypatch, use_v1=use_v1, num_workers=num_workers, own_seed=own_seed, setting=setting)

    return make


PROMPTS = ["a", "b", "a", "a"]  # of a data set that holds one three times, all under one index


@pytest.mark.parametrize("use_v1", [True, False], ids=["current-trainer", "legacy-trainer"])
@pytest.mark.parametrize("own_seed", [None, 42])
def test_no_two_requests_of_a_job_share_a_seed(job, use_v1, own_seed):
    running = job(use_v1=use_v1, own_seed=own_seed)
    found = []
    for step in (1, 2):
        # Twice in a step, as where groups are filtered out, and validated in two batches.
        for validate in (False, False, True, True):
            found += running.ask(step, PROMPTS, validate=validate)
    assert len(found) == 2 * 4 * 4 * NUM_SAMPLES * 3
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("use_v1", [True, False], ids=["current-trainer", "legacy-trainer"])
def test_seeds_depend_on_the_place_alone(job, use_v1):
    asked = [(1, False), (1, True), (2, False), (2, False), (2, True)]
    one = job(use_v1=use_v1, num_workers=1)
    wanted = [sorted(one.ask(step, PROMPTS, validate=validate)) for step, validate in asked]
    other = job(use_v1=use_v1, num_workers=4)
    assert [sorted(other.ask(step, PROMPTS, validate=validate)) for step, validate in asked] == wanted
    resumed = job(use_v1=use_v1)
    assert [sorted(resumed.ask(step, PROMPTS, validate=validate)) for step, validate in asked[2:]] == wanted[2:]


@pytest.mark.parametrize("use_v1", [True, False], ids=["current-trainer", "legacy-trainer"])
def test_a_validations_requests_alone_have_its_longest_draft(job, use_v1):
    OrderedReplayBuffer.places.clear()
    running = job(use_v1=use_v1, num_workers=1, setting=LONGEST)
    for validate, word in ((False, None), (True, {"efficient_rollout": {"max_draft_tokens": 0}}), (False, None)):
        running.clients[0].words.clear()
        assert set(running.ask(1, PROMPTS, validate=validate)) == {None}, "no seed was asked for"
        assert running.clients[0].words == [word] * (len(PROMPTS) * NUM_SAMPLES * 3)
    assert not OrderedReplayBuffer.places, "a stock buffer would never take them out"
