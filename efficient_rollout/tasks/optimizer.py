"""Muon for the weight matrices and AdamW for everything else, as one optimizer for transformers' Trainer."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

# The quintic Newton-Schulz iteration of Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_ADAMW_BETAS = (0.9, 0.98)


def make_optimizer(name: Literal["muon", "adamw"], model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of a schedule: `MuonAndAdamW`, or AdamW alone."""
    if name == "muon":
        return MuonAndAdamW(model, learning_rate, weight_decay=0.01)
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=_ADAMW_BETAS, weight_decay=0.0, fused=True)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and torch's AdamW behind one interface.

    Muon learns this task in markedly less processor time than AdamW alone, which is what makes training on two CPU
    cores practical. It is defined for matrices only; embeddings, the output head and norms are AdamW's.

    Args:
        model: Its embedding and output head are found through transformers' accessors.
        learning_rate: Peak rate of both parts; Muon's updates are scaled to AdamW's size.
        weight_decay: Decoupled weight decay of the matrices.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        not_matrices = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in not_matrices]
        others = [p for p in model.parameters() if p.ndim != 2 or id(p) in not_matrices]
        self._parts = (
            Muon(matrices, learning_rate, weight_decay),
            torch.optim.AdamW(others, lr=learning_rate, betas=_ADAMW_BETAS, weight_decay=0.0, fused=True),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def step(self, closure: None = None) -> None:  # noqa: ARG002 - torch's signature
        """One step of both parts; a closure is not supported, the Trainer passes none."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both parts, by position."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, at the size of AdamW's updates: `torch.optim.Muon` in the weights' own dtype.

    torch's orthogonalizes in bfloat16, whose matrix products are a hundred times slower than float32's on CPUs without
    instructions for it.

    Args:
        matrices: Two-dimensional parameters.
        learning_rate: On AdamW's scale ("match_rms_adamw", https://arxiv.org/abs/2502.16982).
        weight_decay: Decoupled.
        momentum: Of the gradient's moving average.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002 - torch's signature
        """One step on every matrix that has a gradient; a closure is not supported."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalized(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """`matrix` (rows, columns) with its singular values drawn towards 1, most to 0.7 to 1.2; same shape and dtype."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if matrix.shape[0] > matrix.shape[1] else wide
