"""Prompts as an engine takes them."""

from collections.abc import Mapping, Sequence


def encode(model: str, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[list[int]]:
    """Token ids of prompts: texts as they are, messages through the chat template.

    Args:
        model: Directory with a tokenizer.
        prompts: Texts, or lists of messages with `role` and `content`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        tokenizer.encode(
            prompt
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False),
            add_special_tokens=isinstance(prompt, str),
        )
        for prompt in prompts
    ]
