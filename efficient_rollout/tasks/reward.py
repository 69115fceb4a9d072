"""Rule-based reward of the embedded tasks, with veRL's signature.

Give this file to veRL as `reward.custom_reward_function.path`, with `reward.custom_reward_function.name=compute_score`.
veRL loads it by path in reward workers, so it imports nothing but the standard library.
"""

import re

# At the very end, so that an answer that is cut off, or talked on about, is none.
_SUM = re.compile(r"(?:^|=)(\d+)\.$", re.ASCII)
_WORD_PROBLEM = re.compile(r"\banswer is:?\s*\$?(\d+)(?:\.0+)?(?: [a-z]+)?\.?$", re.ASCII | re.IGNORECASE)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,  # noqa: ARG001 - veRL passes it by name
    **kwargs: object,  # noqa: ARG001
) -> dict[str, float]:
    """Score one response: 1 for the right final answer, 0 for a wrong, truncated or malformed one.

    Only the final answer, in decimal, counts, so a policy may find its own way to work it out. A task that has no rule
    of its own gets that of the sums.

    Returns:
        `score` (the reward) and `acc` (the same, under the name veRL reports in validation), 0.0 or 1.0; and
        `well_formed`, 1.0 if the response ends with a complete answer, right or wrong.
    """
    final_answer = _WORD_PROBLEM if data_source == "efficient_rollout/word_problems" else _SUM
    match = final_answer.search(solution_str.strip())
    right = float(match is not None and match.group(1) == str(ground_truth))
    return {"score": right, "acc": right, "well_formed": float(match is not None)}
