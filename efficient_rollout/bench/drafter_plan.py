"""What `bench drafter` is asked to measure, and what one run of it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from efficient_rollout.bench.work import Prompt
from efficient_rollout.config import Settings

PLAIN_EAGER, PLAIN_COMPILED = "plain eager", "plain compiled"
_SHOWN_LENGTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterPlan:
    """Says what is measured.

    Attributes:
        model: The policy's directory.
        drafters: Settings by the name of the arm.
        batches: Running requests, ascending.
        lengths: Fixed k of the drafting arms, ascending.
        context_tokens: Mean tokens per request while its passes are timed.
        response_tokens: Emitted by every request of a run.
        prompts: More than the largest batch, for some responses may end before they are `context_tokens` long.
        eos_token_ids: End a response while contexts are made; empty where prompts already are that long.
        rounds: Runs of each arm at each batch and k, and weight syncs of each.
        temperature: 0 is greedy.
        dtype: Of the policy.
        is_compiled: Compiled mode for the drafting engines.
        plain_arms: `PLAIN_EAGER`, and `PLAIN_COMPILED` where there is one.
        longest_tokens: Longest prompt and response of whatever else the engines will be asked.
    """

    model: str
    drafters: Mapping[str, Settings]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    context_tokens: int
    response_tokens: int
    prompts: Sequence[Prompt]
    eos_token_ids: tuple[int, ...]
    rounds: int
    temperature: float
    dtype: str
    is_compiled: bool
    plain_arms: tuple[str, ...]
    longest_tokens: int = 0

    @property
    def shown_length(self) -> int:
        """Return the k that summaries show: 4, whose pass verifies 5 positions, or the nearest that is measured."""
        return min(self.lengths, key=lambda k: (abs(k - _SHOWN_LENGTH), k))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Holds one arm's decoding of one batch of work with one k.

    Attributes:
        arm: A plain engine's name, or a drafter's.
        batch: Requests.
        num_draft_tokens: k; 0 in a drafting arm is its engine with nothing to draft.
        round: Number of the round.
        tick_seconds: Median of the ticks with the whole batch.
        draft_step_seconds: Per draft token, inside the drafter; None without drafts.
        verify_seconds: Rest of the tick: the pass over k + 1 positions, sampling and bookkeeping; None without drafts.
        decode_seconds: From the end of the prefill to the last token.
        decoded_tokens: Emitted in that time.
        mean_accepted_length: Tokens per verify pass and request, the policy's own included; None without drafts.
        mean_context_tokens: Per request, over the timed ticks; None in plain engines, which do not say.
        num_ticks: Behind the medians.
        part_seconds: Of the mean tick, by what it was doing; empty in plain engines.
    """

    arm: str
    batch: int
    num_draft_tokens: int
    round: int
    tick_seconds: float
    draft_step_seconds: float | None = None
    verify_seconds: float | None = None
    decode_seconds: float
    decoded_tokens: int
    mean_accepted_length: float | None = None
    mean_context_tokens: float | None = None
    num_ticks: int
    part_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRun:
    """Holds one weight sync of one drafting engine, and beside it the plain engine's reload of the same checkpoint.

    Attributes:
        arm: The drafter's name.
        weight_sync_seconds: Of the drafting engine, from the checkpoint's files.
        requantize_seconds: Of them, for the drafter.
        plain_reload_seconds: The eager plain engine's, in the same round.
    """

    arm: str
    weight_sync_seconds: float
    requantize_seconds: float
    plain_reload_seconds: float


@dataclass(slots=True)
class Measured:
    """Holds everything a run of the plan brought.

    Attributes:
        runs: Of every arm, batch, k and round.
        switches: By drafter and batch, seconds a round of two ticks: one drafts and verifies nothing, the next verifies
            and drafts nothing.
        syncs: Of every drafter and round.
        memory: By drafter its `drafter_bytes`, and its `num_packed_weights`: policy's weights that have a packed copy.
    """

    runs: list[Run] = field(default_factory=list)
    switches: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    syncs: list[SyncRun] = field(default_factory=list)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
