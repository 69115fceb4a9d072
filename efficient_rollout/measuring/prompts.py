"""Prompts as an engine takes them, and what it gives as text."""

from collections.abc import Mapping, Sequence


def encode(model: str, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[list[int]]:
    """Return token ids of prompts: texts as they are, messages through the chat template.

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


def decode(model: str, token_ids: Sequence[int]) -> str:
    """Return the text of a response, without special tokens.

    Args:
        model: Directory with a tokenizer.
        token_ids: Of the response.
    """
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(model).decode(list(token_ids), skip_special_tokens=True))
