"""A character tokenizer for the arithmetic policy: one token a printable ASCII character, digits included.

Special tokens come first, then newline and the printable characters; the rest of the 128 ids are reserved, so that
every id the model can sample decodes. The vocabulary is a multiple of 64, as packed INT8 and INT4 kernels want.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 128
# veRL's agent loop asks every tokenizer of a Qwen3 model for "<|im_end|>", and for a newline of one token.
PAD, BOS, EOS, UNKNOWN = "<|pad|>", "<|begin|>", "<|im_end|>", "<|unknown|>"
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return all tokens, in id order, `VOCAB_SIZE` long."""
    special = [PAD, BOS, EOS, UNKNOWN, *(f"<|{role}|>" for role in ROLES)]
    characters = ["\n", *(chr(code) for code in range(0x20, 0x7F))]
    reserved = [f"<|reserved_{index}|>" for index in range(VOCAB_SIZE - len(special) - len(characters))]
    return special + characters + reserved


def build_tokenizer(max_length: int) -> "PreTrainedTokenizerFast":
    """Make the tokenizer of a model whose longest sequence has so many tokens; `AutoTokenizer` loads it offline."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = vocabulary()
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    special = [token for token in tokens if len(token) > 1]
    ends = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN}
    return wrapped(backend, special, CHAT_TEMPLATE, model_max_length=max_length, **ends)


def wrapped(backend: "Tokenizer", special: Iterable[str], template: str, **options: Any) -> "PreTrainedTokenizerFast":
    """Return transformers' tokenizer around a backend, whose special tokens are added, with a chat template."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **options
    )
    tokenizer.chat_template = template
    return tokenizer


def prompt_tokens(question: str) -> list[str]:
    """Return what the chat template makes of one user message plus the generation prompt, token by token."""
    return [BOS, "<|user|>", *question, EOS, "<|assistant|>"]
