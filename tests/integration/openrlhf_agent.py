"""An agent of OpenRLHF's with two turns: it is asked again after a wrong answer."""

from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from efficient_rollout.tasks.reward import compute_score

MAX_TURNS = 2


class Asking(AgentInstanceBase):
    """One question."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.num_turns = 0

    async def step(self, state_dict: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        """Score the answer; a wrong one is answered by "?"."""
        self.num_turns += 1
        score = compute_score("", state_dict["action_text"].partition("<|")[0], state_dict["label"])["score"]
        reward = torch.tensor(score)
        return {
            "rewards": reward,
            "scores": reward,
            "environment_feedback": "?",
            "done": score == 1.0 or self.num_turns == MAX_TURNS,
            "sampling_params": state_dict.get("sampling_params"),
            "extra_logs": {"turns": torch.tensor(float(self.num_turns))},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    """The name OpenRLHF looks for."""

    def __init__(self) -> None:
        super().__init__(Asking)
