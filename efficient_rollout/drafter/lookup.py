"""Draft tokens copied from a request's own text: what stood behind the place that reads most like its end."""

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

# Longer matches are told apart from these by nothing that was measured.
MOST_MATCHING_TOKENS = 16
# A text of one repeated token has as many places as tokens; the latest are looked at.
_MOST_PLACES = 256


def find_copies(text: Tokens, most: int) -> tuple[Tokens, int]:
    """Find what came after the last place where the text reads as its end does.

    Of several places, the one with the longest match counts, and of those the latest. Where the copied part reaches
    the end of the text, it goes on with itself, as text that repeats would.

    Args:
        text: int32 [tokens], prompt and response; at least one.
        most: Tokens to return.

    Returns:
        int32 [most], or [0] where the last token occurs nowhere else; and the number of tokens that match, at most
        `MOST_MATCHING_TOKENS`.
    """
    newest = len(text) - 1
    places = np.flatnonzero(text[:newest] == text[newest])[-_MOST_PLACES:]
    if most < 1 or not len(places):
        return text[:0], 0
    length = 1
    while length < min(MOST_MATCHING_TOKENS, newest):
        longer = places[places >= length]
        longer = longer[text[longer - length] == text[newest - length]]
        if not len(longer):
            break
        places, length = longer, length + 1
    behind = text[places[-1] + 1 : places[-1] + 1 + most]
    return np.resize(behind, most), length
