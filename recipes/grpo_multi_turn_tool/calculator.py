"""A calculator, and how the embedded policy calls it; veRL loads this file in each process that runs agent loops.

The embedded policy works a sum out from the left: `3+14+5=` becomes `17+5=22.`. What it writes up to the first equals
sign is its call: the calculator adds that up, the answer comes back as a tool's message, and the policy goes on from
it. A sum of two operands has no such step, and calls nothing.
"""

import json
import re

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool

_SUM = re.compile(r"(\d+(?:\+\d+)+)=")


@function_tool("add")
def add(terms: str) -> str:
    """Add non-negative whole numbers.

    Args:
        terms: The numbers with plus signs between them, such as 17+5+9.

    Returns:
        The sum, as a question that the policy was made for: it has never seen a tool's answer.
    """
    return f"{sum(int(term) for term in terms.split('+'))}+0="


@ToolParser.register("embedded_sum")
class EmbeddedSumParser(ToolParser):
    """Finds the sum that the embedded policy wrote up to the first equals sign."""

    @property
    def stop_token_ids(self) -> list[int]:
        """The equals sign ends a turn: what follows is the tool's to say."""
        return [self.tokenizer.convert_tokens_to_ids("=")]

    async def extract_tool_calls(self, responses_ids: list[int], tools: list | None = None) -> tuple:  # noqa: ARG002 - veRL's
        """The response's text, and a call of `add` where it ends with a sum to add up."""
        text = self.tokenizer.decode(responses_ids, skip_special_tokens=True)
        match = _SUM.search(text)
        if match is None:
            return text, []
        return text, [FunctionCall(name="add", arguments=json.dumps({"terms": match[1]}))]
