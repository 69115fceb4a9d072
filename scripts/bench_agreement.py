"""How often a drafter of each scheme draws the policy's own token, on the policy's own responses, teacher-forced.

    .venv/bin/python scripts/bench_agreement.py --schemes int8,int4:group_size=32 --responses 32

The policy's responses to word problems are read once by the policy and once by each drafter, a position at a time as an
engine's first draft reads it: it attends to the policy's keys and values, and to its own at the last position. Both
draw with the same noise. No engine is started. (`efficient-rollout bench drafter --acceptance` counts whole chains of
drafts, in engines.) Prints the share of positions with equal draws, and its standard error over responses.

`--noise S` first adds noise to every matrix, evenly from -S to S steps of the 4 bit grid that the policy's weights come
from: half a step is what rounding to that grid took away, so a drafter with the grid's own groups is flattered no more.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import repeat_kv
from vllm.platforms import current_platform

from efficient_rollout.bench.drafter_cli import drafters_of
from efficient_rollout.drafter.cpu.native.library import has_avx512
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.tasks.policy import ensure_policy
from efficient_rollout.tasks.word_problems import take

_SCHEMES = "int8,int4:group_size=32,int4:group_size=64,int4:group_size=128,unquantized"
_DRAWS = 4
_GRID_GROUP, _GRID_STEPS = 32, 15


class SharedContext:
    """Attention that keeps the policy's keys and values, and lets a drafter attend to them."""

    def __init__(self) -> None:
        self.drafts = False
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **others: Any
    ) -> tuple[torch.Tensor, None]:
        """Causal attention of one sequence, [1, heads, tokens, head] each, to [1, tokens, heads, head]."""
        if not self.drafts:
            self._kept[layer.layer_idx] = (key, value)
        context_key, context_value = self._kept[layer.layer_idx]
        groups = layer.num_key_value_groups
        scores = query @ repeat_kv(context_key, groups).transpose(2, 3)
        own = (query * repeat_kv(key, groups)).sum(-1)
        scores = (scores + torch.diag_embed(own - scores.diagonal(dim1=2, dim2=3))).float() * others["scaling"]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1).to(query.dtype)
        mixed = weights @ repeat_kv(context_value, groups)
        mixed += weights.diagonal(dim1=2, dim2=3)[..., None] * repeat_kv(value - context_value, groups)
        return mixed.transpose(1, 2).contiguous(), None


@contextmanager
def drafting(model: Any, settings: Any) -> Iterator[None]:
    """The model's linear layers multiply by a scheme's packed weights inside."""
    scheme = make_scheme(settings.drafter, "cpu")
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        if scheme.takes(*layer.weight.shape, layer.weight.dtype):
            layer.forward = scheme.pack(layer.weight, layer.bias).multiply
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def add_noise(model: Any, num_steps: float) -> None:
    """Move every weight of the linear layers by up to so many steps of the grid of its 32 neighbours."""
    for layer in model.model.modules():  # not the output head, which is the embedding, and comes from 8 bits
        if isinstance(layer, torch.nn.Linear):
            groups = layer.weight.data.float().view(-1, _GRID_GROUP)
            steps = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / _GRID_STEPS
            moved = groups + (torch.rand_like(groups) * 2 - 1) * num_steps * steps
            layer.weight.data = moved.view_as(layer.weight).to(layer.weight.dtype)


def responses(model: Any, tokenizer: Any, count: int, num_tokens: int, temperature: float) -> list[tuple[Any, int]]:
    """Token ids [1, tokens] of prompts with their sampled responses, and the length of the prompt."""
    found = []
    for problem in take("validation", 0, count):
        prompt = tokenizer.apply_chat_template(
            problem.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**prompt, max_new_tokens=num_tokens, do_sample=True, temperature=temperature, top_k=0)
        found.append((ids, prompt["input_ids"].shape[1]))
    return found


def read(model: Any, ids: torch.Tensor, prompt_tokens: int) -> torch.Tensor:
    """Logits of the response's tokens, float32 [tokens, vocabulary]."""
    keep = ids.shape[1] - prompt_tokens + 1
    return model(ids, logits_to_keep=keep).logits[0, :-1].float()


@torch.inference_mode()
def agreement(model: Any, drafters: Any, texts: list[tuple[Any, int]], temperature: float) -> dict[str, list[float]]:
    """Shares of equal draws by drafter, one for each response; and the policy's mean entropies in nats."""
    contexts = [SharedContext() for _ in texts]
    shares: dict[str, list[float]] = {"entropy, nats": []}

    def logits(index: int) -> torch.Tensor:
        AttentionInterface.register("shared_context", contexts[index])
        model.set_attn_implementation("shared_context")
        return read(model, *texts[index]) / temperature

    def draws(index: int, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.Generator().manual_seed(index)
        rivals = (torch.empty_like(scores).exponential_(generator=noise).log() for _ in range(_DRAWS))
        return torch.stack([(scores - rival).argmax(-1) for rival in rivals])

    drawn = []
    for index in range(len(texts)):
        scores = logits(index)
        drawn.append(draws(index, scores))
        shares["entropy, nats"].append(float(torch.special.entr(scores.softmax(-1)).sum(-1).mean()))
        contexts[index].drafts = True
    for name, settings in drafters.items():
        with drafting(model, settings):
            drafted = [draws(index, logits(index)) for index in range(len(texts))]
        pairs = zip(drafted, drawn, strict=True)
        shares[name] = [float((drafts == own).float().mean()) for drafts, own in pairs]
    model.set_attn_implementation("sdpa")
    return shares


def main() -> None:
    """Measure, and print a line per temperature and drafter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint of SmolLM2's shape; without it, size=smollm2")
    parser.add_argument("--schemes", default=_SCHEMES)
    parser.add_argument("--temperatures", default="1.0,0.6")
    parser.add_argument("--responses", type=int, default=32)
    parser.add_argument("--response-tokens", type=int, default=96)
    parser.add_argument("--noise", type=float, default=0.0, metavar="STEPS")
    given = parser.parse_args()
    current_platform.import_kernels()  # int8's are vLLM's
    drafters = drafters_of(given.schemes, 1)
    for settings in drafters.values():
        make_scheme(settings.drafter, "cpu")
    torch.manual_seed(0)
    directory = given.model or ensure_policy("smollm2")
    dtype = torch.bfloat16 if has_avx512() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    add_noise(model, given.noise)
    for temperature in map(float, given.temperatures.split(",")):
        texts = responses(model, tokenizer, given.responses, given.response_tokens, temperature)
        num_tokens = sum(ids.shape[1] - prompt_tokens for ids, prompt_tokens in texts)
        sys.stdout.write(
            f"temperature {temperature}, {len(texts)} responses, {num_tokens} tokens, noise {given.noise}\n"
        )
        for name, shares in agreement(model, drafters, texts, temperature).items():
            error = stdev(shares) / len(shares) ** 0.5
            sys.stdout.write(f"  {name:24s} {fmean(shares):.4f} +- {error:.4f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
