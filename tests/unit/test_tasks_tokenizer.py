"""The tokenizer: one token a character, lossless, loadable offline, with a chat template."""

import pytest

from efficient_rollout.tasks.arithmetic import take
from efficient_rollout.tasks.tokenizer import VOCAB_SIZE, build_tokenizer, prompt_tokens, vocabulary
from efficient_rollout.tasks.training_plans import level_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(512).save_pretrained(directory)
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def test_vocabulary_size_suits_packed_kernels(tokenizer):
    assert len(vocabulary()) == len(set(vocabulary())) == len(tokenizer) == VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0
    assert tokenizer.convert_ids_to_tokens(list(range(VOCAB_SIZE))) == vocabulary()


def test_special_tokens_are_distinct(tokenizer):
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert tokenizer.model_max_length == 512


def test_worked_answers_round_trip_one_token_a_character(tokenizer):
    for problem in take(level_of("small"), "train", 0, 50):
        token_ids = tokenizer.encode(problem.worked_answer, add_special_tokens=False)
        assert len(token_ids) + 1 == problem.num_response_tokens
        assert tokenizer.decode(token_ids) == problem.worked_answer


def test_any_ascii_text_round_trips(tokenizer):
    text = "".join(map(chr, range(0x20, 0x7F))) + "  two  spaces\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("1é") == ["1", tokenizer.unk_token]


def test_chat_template_is_what_training_uses(tokenizer):
    messages = [{"role": "user", "content": "3+14="}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "".join(prompt_tokens("3+14="))
    token_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(token_ids) == prompt_tokens("3+14=")
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "3+14="


def test_chat_template_continues_a_conversation(tokenizer):
    messages = [{"role": "user", "content": "3+14="}, {"role": "assistant", "content": "17."}]
    without = tokenizer.apply_chat_template(messages, tokenize=False)
    assert without == "".join(prompt_tokens("3+14=")) + "17." + tokenizer.eos_token
