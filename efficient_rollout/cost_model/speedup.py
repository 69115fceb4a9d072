"""How many tokens a tick yields, and how much faster that is than plain decoding.

Formulas (Leviathan et al., 2023, section 3.1): with per-token acceptance a and k draft tokens, a tick emits
L(k) = (1 - a^(k+1)) / (1 - a) tokens per request, and speedup(k) = L(k) T_plain / (k T_draft + T_verify(k)).
"""

from collections.abc import Sequence

from efficient_rollout.errors import ConfigError


def expected_tokens(acceptance: float, num_draft_tokens: int) -> float:
    """Return the tokens one request emits per tick, the policy's own token included.

    Raises:
        ConfigError: `acceptance` is outside [0, 1].
    """
    if not 0.0 <= acceptance <= 1.0:
        raise ConfigError(f"acceptance is {acceptance}; give a probability between 0 and 1")
    if acceptance == 1.0:
        return float(num_draft_tokens + 1)
    return float((1.0 - acceptance ** (num_draft_tokens + 1)) / (1.0 - acceptance))


def expected_tokens_by_position(acceptance: Sequence[float]) -> list[float]:
    """Return L(0), L(1), ... when position i is accepted with probability `acceptance[i]`, given all before it were.

    Returns:
        `len(acceptance) + 1` values; entry k is the tokens per request and tick with k draft tokens.
    """
    tokens, reach = [1.0], 1.0
    for probability in acceptance:
        reach *= probability
        tokens.append(tokens[-1] + reach)
    return tokens


def speedup(tokens: float, plain_s: float, speculative_s: float) -> float:
    """Return tokens per second with drafting over tokens per second without; both times are seconds per tick."""
    return tokens * plain_s / speculative_s
