"""What a rule sees, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeState:
    """Describes one engine tick, as the scheduler sees it before it schedules.

    Attributes:
        num_running_requests: Requests that hold a slot in the running batch.
        num_waiting_requests: Requests admitted to the engine but not yet running.
        num_prefill_tokens: Prompt tokens of running requests that are not computed yet.
        mean_context_tokens: Mean tokens (prompt and response) per running request; 0.0 when none run.
        max_draft_tokens: Upper bound of the answer: of the settings, and of what any running request wants. 0 is no
            question to a rule.
    """

    num_running_requests: int
    num_waiting_requests: int
    num_prefill_tokens: int
    mean_context_tokens: float
    max_draft_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Holds the draft tokens per request for one tick, and a short machine-readable reason.

    Attributes:
        num_draft_tokens: 0 is plain decoding.
        reason: Ends up in the metrics, as `decision_share/<reason>`.
    """

    num_draft_tokens: int
    reason: str
