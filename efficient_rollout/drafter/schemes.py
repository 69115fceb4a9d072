"""The schemes by name, on each type of device."""

from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from efficient_rollout.config import SCHEME_NAMES, DrafterSettings
from efficient_rollout.drafter.cpu.schemes import cpu_schemes
from efficient_rollout.drafter.scheme import FLOAT_DTYPES, Scheme
from efficient_rollout.errors import SchemeUnavailableError

_SHAPES_NAMED = 6


def make_scheme(settings: DrafterSettings, device_type: str, capability: tuple[int, int] | None = None) -> Scheme:
    """Return the scheme the settings ask for.

    Args:
        settings: The drafter's part of the settings tree.
        device_type: As in `torch.device.type`.
        capability: Of a GPU's instructions, where it is known: asking for it starts CUDA in this process.

    Raises:
        SchemeUnavailableError: It has no kernel on this device; the message names the ones that do.
    """
    schemes = schemes_on(device_type, settings, capability)
    scheme = schemes.get(settings.scheme)
    missing = f"there is none for {device_type}" if scheme is None else scheme.missing()
    if scheme is None or missing is not None:
        available = [name for name, other in schemes.items() if other.missing() is None] or ["none"]
        raise SchemeUnavailableError(
            f"drafter.scheme={settings.scheme} is not available here: {missing}. Available: {', '.join(available)}."
        )
    return scheme


def schemes_on(
    device_type: str, settings: DrafterSettings, capability: tuple[int, int] | None = None
) -> dict[str, Scheme]:
    """Return those there are for a type of device, by name, whether or not their kernels can run here.

    Args:
        device_type: As in `torch.device.type`.
        settings: The drafter's part of the settings tree.
        capability: As in `make_scheme`.
    """
    if device_type == "cpu":
        return cpu_schemes(settings)
    if device_type == "cuda":
        from efficient_rollout.drafter.cuda.schemes import cuda_schemes  # Triton is not in every environment

        return cuda_schemes(settings, capability)
    return {}


def require_taken(
    settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype | None, device_type: str = "cpu"
) -> None:
    """Raise SchemeUnavailableError where a scheme that is there to quantize takes no layer of the policy.

    Its drafter would be the policy itself, at the policy's price. The message names the settings that take some.

    Args:
        settings: The drafter's part of the settings tree.
        shapes: [out_features, in_features] of the policy's layers.
        dtype: Of the policy; None where only the shapes are known.
        device_type: As in `torch.device.type`.
    """
    where = f", in {str(dtype).removeprefix('torch.')}" if dtype else ""
    dtype = dtype or FLOAT_DTYPES[0]
    scheme = schemes_on(device_type, settings)[settings.scheme]
    if scheme.layer is None or any(scheme.takes(*shape, dtype) for shape in shapes):
        return
    listed = ", ".join(f"{shape[0]} x {shape[1]}" for shape in sorted(set(shapes))[:_SHAPES_NAMED])
    raise SchemeUnavailableError(
        f"drafter.scheme={scheme.name} takes no layer of this policy: its weights (outputs x inputs) are {listed}"
        f"{where}. It takes {scheme.what_it_takes}. Available: "
        f"{', '.join(_takers(settings, shapes, dtype, device_type)) or 'none'}; or set efficient_rollout.enabled=false."
    )


def _takers(
    settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device_type: str
) -> Iterator[str]:
    """Yield every scheme that takes one of the layers.

    Where it does so with another group size only, the largest of these is named.
    """
    sizes = (settings.group_size, *sorted(get_args(DrafterSettings.model_fields["group_size"].annotation))[::-1])
    for name in SCHEME_NAMES:
        for size in sizes:
            scheme = schemes_on(device_type, settings.model_copy(update={"group_size": size})).get(name)
            if scheme is not None and any(scheme.takes(*shape, dtype) for shape in shapes):
                yield name if size == settings.group_size else f"{name} with drafter.group_size={size}"
                break
