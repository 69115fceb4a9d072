"""The schemes on a CPU: this package's own kernels."""

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cpu.layers import Int4NativeLinear, Int8NativeLinear
from efficient_rollout.drafter.cpu.native.library import has_vnni, native_missing
from efficient_rollout.drafter.scheme import UNQUANTIZED, Scheme


def cpu_schemes(settings: DrafterSettings) -> dict[str, Scheme]:
    """Return every scheme for a CPU, by name."""
    kernel = "native VNNI" if has_vnni() else "native AVX2"
    int8 = Scheme(name="int8", kernel=kernel, layer=Int8NativeLinear, missing=native_missing, tile=(16, 16))
    int4 = Scheme(
        name="int4",
        kernel=kernel,
        layer=lambda weight, bias: Int4NativeLinear(weight, bias, group_size=settings.group_size),
        missing=native_missing,
        tile=(16, settings.group_size),
    )
    return {scheme.name: scheme for scheme in (int8, int4, UNQUANTIZED)}
