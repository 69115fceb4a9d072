"""Time a running engine at the points a latency profile asks for.

A point's context is not computed: its KV is whatever the cache holds, for attention takes as long over any numbers.
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any

from efficient_rollout.config import Settings
from efficient_rollout.cost_model.calibration import calibrate
from efficient_rollout.cost_model.latency import ResidualScales
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile
from efficient_rollout.cost_model.roofline import GRAPHS_OF_EVERY_LENGTH, NO_PADDING
from efficient_rollout.cost_model.table import DRAFT, PLAIN, VERIFY, Point
from efficient_rollout.engine.environment import device_type
from efficient_rollout.engine.profiles import profile_key, profiled_scheme
from efficient_rollout.errors import ConfigError, ProfileError
from efficient_rollout.measuring import offline, scripted, starting
from efficient_rollout.measuring.offline import TickRecord
from efficient_rollout.measuring.starting import EngineLimits, StartEngine
from efficient_rollout.policy_config import read_policy_config

logger = logging.getLogger(__name__)

_TICKS_PER_POINT = 20
_WARM_UP_TICKS, _MIN_TICKS = 2, 3
# One while a point's requests arrive, one that verifies nothing, and enough steady ones. Slow points make do with
# these: a few of them would take the whole budget.
_LEAST_TICKS = 2 + _WARM_UP_TICKS + _MIN_TICKS
_MAX_REPETITIONS = 4
# Of a point on a CPU, in log seconds: a few ticks, minutes apart from other points', on a machine that does other
# things too. Of 0.006 to 0.08, the larger half left the least errors at points left out, on two profiles of a shared
# machine.
_NOISE_SD = 0.06
# The kernels of a CPU compute the rows they are given.
_ON_CPU: dict[str, Any] = {"padding": NO_PADDING, "scales": ResidualScales(nugget_sd=_NOISE_SD)}
_ON_GPU: dict[str, Any] = {"padding": GRAPHS_OF_EVERY_LENGTH}
_MAX_KV_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Says what is measured, and for how long."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # running requests
    contexts: tuple[int, ...] = (128, 512, 2048)  # mean context tokens
    lengths: tuple[int, ...] = (1, 2, 4, 8)  # draft tokens
    max_points: int = 30  # upper bound of the measured points
    # Budget of the measurements, engine start not included: points that do not fit it any more are left out. The twelve
    # cheapest of the fixed start are measured however long they take.
    seconds: float = 60.0
    dtype: str = "bfloat16"  # of the policy
    is_compiled: bool = False  # compiled mode instead of eager
    tensor_parallel_size: int = 1  # of the engine


def candidates(probe: ProbeSettings, *, max_context_tokens: int, kv_cache_tokens: int) -> list[Point]:
    """Return the full grid without points whose contexts do not fit the policy or the KV cache.

    Raises:
        ConfigError: Nothing is left of it.
    """
    spare = _tokens_of(_TICKS_PER_POINT, max(probe.lengths))
    cells = [
        (batch, context)
        for batch, context in itertools.product(probe.batches, probe.contexts)
        if context + spare <= max_context_tokens and batch * (context + spare) <= kv_cache_tokens
    ]
    if not cells:
        raise ConfigError(
            f"no context of {list(probe.contexts)} tokens fits a policy of {max_context_tokens} positions, with room "
            f"for {spare} more to be decoded; give shorter --contexts"
        )
    kinds = [(PLAIN, 0), *itertools.product((DRAFT, VERIFY), probe.lengths)]
    return [Point(kind, k, batch, context) for (kind, k), (batch, context) in itertools.product(kinds, cells)]


def steady_ticks(ticks: Sequence[TickRecord], num_draft_tokens: int, batch: int) -> list[TickRecord]:
    """Return those behind the first ones that drafted and verified `num_draft_tokens` for each of `batch` requests."""
    wanted = (batch, num_draft_tokens, num_draft_tokens * batch, False)
    alike = [t for t in ticks if (t.num_requests, t.num_drafted, t.num_verified, t.had_prefill) == wanted]
    return alike[_WARM_UP_TICKS:]


def require_steady_ticks(ticks: Sequence[TickRecord], num_draft_tokens: int, batch: int) -> list[TickRecord]:
    """Return `steady_ticks`, enough of them for a median.

    Raises:
        ProfileError: There are too few.
    """
    steady = steady_ticks(ticks, num_draft_tokens, batch)
    if len(steady) < _MIN_TICKS:
        raise ProfileError(
            f"of {len(ticks)} ticks only {len(steady)} ran {batch} requests with {num_draft_tokens} draft tokens each, "
            f"{_MIN_TICKS} are needed; decode more tokens, or see in the engine's log why it does not draft"
        )
    return steady


def seconds_of_passes(ticks: Sequence[TickRecord], num_draft_tokens: int) -> dict[int, float]:
    """Return median seconds by kind of pass, from ticks that all draft `num_draft_tokens`, at least one."""
    if num_draft_tokens == 0:
        return {PLAIN: median(tick.seconds for tick in ticks)}
    return {
        DRAFT: median(tick.draft_seconds for tick in ticks) / num_draft_tokens,
        VERIFY: median(tick.seconds - tick.draft_seconds for tick in ticks),
    }


@dataclass(slots=True)
class Prober:
    """Measures seconds of points on a running engine; a draft point brings its verify point along."""

    engine: Any  # one that drafts, without prefix caching
    probe: ProbeSettings  # what is measured
    seconds_spent: float = 0.0  # measuring, so far
    num_ticks: int = 0  # recorded, so far
    # Per measured point, the middle half of its ticks' seconds over their median.
    spreads: list[float] = field(default_factory=list)
    _known: dict[Point, float] = field(default_factory=dict)
    _num_asked: int = 0

    def __call__(self, point: Point) -> float:
        """Return the median seconds of one point.

        Raises:
            ProfileError: The engine did not do what was asked of it.
        """
        self._num_asked += 1
        if point not in self._known:
            started = time.perf_counter()
            left = max(0.0, self.probe.seconds - self.seconds_spent)
            self._measure(point, left / max(1, self.probe.max_points - self._num_asked + 1))
            self.seconds_spent += time.perf_counter() - started
        return self._known[point]

    def affords(self, point: Point, tick_seconds: float) -> bool:
        """Tell whether a point, with ticks so long, fits what is left; one that its twin brought costs nothing."""
        return point in self._known or self.seconds_spent + _LEAST_TICKS * tick_seconds <= self.probe.seconds

    def _measure(self, point: Point, share_s: float) -> None:
        k, batch = point.num_draft_tokens, point.batch
        deadline = time.perf_counter() + share_s
        # The first ones however long they take: a point is never made up.
        ticks = self._ticks(point, share_s)
        for _ in range(_MAX_REPETITIONS):
            left = deadline - time.perf_counter()
            if left > 0.0 or len(steady_ticks(ticks, k, batch)) < _MIN_TICKS:
                ticks += self._ticks(point, left)
        steady = require_steady_ticks(ticks, k, batch)
        passes, seconds = seconds_of_passes(steady, k), [tick.seconds for tick in steady]
        lower, middle, upper = quantiles(seconds, n=4)
        self.spreads.append((upper - lower) / middle)
        self._known |= {replace(point, kind=kind): passes[kind] for kind in passes}
        logger.info("%s: %s", point, passes)

    def _ticks(self, point: Point, limit_s: float) -> list[TickRecord]:
        max_tokens = _tokens_of(_TICKS_PER_POINT, point.num_draft_tokens)
        # The mean over the fewest ticks is the point's context, as far as it is longer than what is decoded.
        num_prompt = max(1, point.context_tokens - _tokens_of(_LEAST_TICKS, point.num_draft_tokens) // 2)
        works = [(tuple((7 * i + j) % 64 + 3 for j in range(num_prompt)), max_tokens) for i in range(point.batch)]
        wanted = {scripted.PATTERN: [point.num_draft_tokens], scripted.PREFILLED: True}
        result = offline.roll_out(
            self.engine, works, extra_args=wanted, records=True, limit_s=limit_s, least_ticks=_LEAST_TICKS
        )
        self.num_ticks += len(result.ticks)
        return result.ticks


def calibrate_engine(
    model: str,
    settings: Settings,
    probe: ProbeSettings,
    *,
    provenance: Mapping[str, Any],
    start: StartEngine | None = None,
    and_then: Callable[[Any], dict[str, Any]] = lambda _: {},
) -> Profile:
    """Start an engine on a policy, measure, stop it, and fit.

    Args:
        model: The policy's directory.
        settings: The scheme, and the largest number of draft tokens.
        probe: What is measured, and for how long.
        provenance: What the profile was made with; JSON types only.
        start: Of the engine; None: `starting.start_engine`.
        and_then: Is given the engine once it was measured, and returns more for the provenance.

    Raises:
        EfficientRolloutError: The policy, the scheme or the probe's settings are out of reach.
    """
    points, limits = _plan(model, settings, probe)
    started = time.perf_counter()
    engine = (start or starting.start_engine)(model, limits, settings.with_lookup("off"))
    try:
        start_s = time.perf_counter() - started
        facts = {"engine_start_s": start_s, "dtype": probe.dtype, "is_compiled": probe.is_compiled}
        offline.roll_out(engine, [((3, 4, 5), 8)], extra_args={scripted.PATTERN: [1]})
        prober = Prober(engine, probe)
        profile = calibrate(
            points,
            prober,
            key=profile_key(model, profiled_scheme(settings), tensor_parallel_size=probe.tensor_parallel_size),
            max_points=probe.max_points,
            shape=read_model_shape(model),
            provenance={**provenance, **facts},
            affords=prober.affords,
            **(_ON_GPU if device_type() == "cuda" else _ON_CPU),
        )
        more = and_then(engine)
    finally:
        starting.stop(engine)
    spent = {"measuring_s": prober.seconds_spent, "num_ticks": prober.num_ticks, "tick_spread": median(prober.spreads)}
    return replace(profile, provenance={**profile.provenance, **spent, **more})


def _plan(model: str, settings: Settings, probe: ProbeSettings) -> tuple[list[Point], EngineLimits]:
    """Return the points that fit, and the engine they fit."""
    most = max(probe.lengths)
    if most > settings.controller.max_draft_tokens:
        raise ConfigError(
            f"--lengths asks for {most} draft tokens, the engine drafts at most {settings.controller.max_draft_tokens}"
        )
    longest = max(probe.contexts) + _tokens_of(_TICKS_PER_POINT, most)
    most_kv_tokens = int(_MAX_KV_BYTES / read_model_shape(model).kv_bytes(probe.dtype))
    fitting = {
        "max_context_tokens": min(read_policy_config(model).max_positions, longest),
        "kv_cache_tokens": min(most_kv_tokens, max(probe.batches) * longest),
    }
    limits = EngineLimits(
        **fitting,
        max_requests=max(probe.batches),
        dtype=probe.dtype,
        is_compiled=probe.is_compiled,
        keeps_prefixes=False,
        tensor_parallel_size=probe.tensor_parallel_size,
    )
    return candidates(probe, **fitting), limits


def _tokens_of(num_ticks: int, num_draft_tokens: int) -> int:
    """Count the tokens of a request for so many ticks alike, and for one more, because the last one drafts less."""
    return (num_ticks + 1) * (num_draft_tokens + 1)
