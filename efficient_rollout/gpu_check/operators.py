"""Step "operators": what this package calls in the installed vLLM is there, and takes what it is given."""

from typing import Any

import torch

from efficient_rollout.engine.compat import installed_vllm
from efficient_rollout.engine.gpu.symbols import OPERATORS, breaches
from efficient_rollout.gpu_check.stand import CheckFailed, Measured, Stand, available_schemes, runnable_schemes


def check_operators(stand: Stand) -> Measured:
    """Names of the V2 runner, schemas of the compiled operators, and which schemes can run here."""
    found = list(breaches(installed_vllm()[0]))
    if found:
        raise CheckFailed("names of vLLM's V2 runner", where="vLLM", expected="all of them", found="; ".join(found))
    for name, wanted in OPERATORS.items():
        arguments = argument_names(stand.operators, name)
        if arguments != wanted.split():
            raise CheckFailed(
                f"arguments of the operator {name}",
                where="vLLM's compiled library",
                expected=wanted,
                found=" ".join(arguments) or "no such operator",
            )
    runnable_schemes()
    return {
        "operators": len(OPERATORS),
        **{name: missing or "can run" for name, missing in available_schemes().items()},
    }


def argument_names(operators: Any, name: str) -> list[str]:
    """Arguments of an operator, in order; none where it does not exist."""
    operator = getattr(operators, name, None)
    if not isinstance(operator, torch._ops.OpOverloadPacket):  # noqa: SLF001 - torch has no public name for it
        return []
    return [argument.name for argument in operator.default._schema.arguments]  # noqa: SLF001 - nor for its schema
