"""Growing a trained decoder: wider and deeper, and at first the same function.

Training a small core and growing it costs minutes where training the grown shape from scratch costs many hours. Width
comes from copies: every hidden unit, head and intermediate unit appears `copies` times, and a matrix divides what it
reads by `copies` (bert2BERT's function-preserving expansion, https://arxiv.org/abs/2110.07143). Depth comes from
inserted blocks that add nothing yet, their output projections being zero (LLaMA Pro, https://arxiv.org/abs/2401.02415).
"""

from torch import Tensor, no_grad, randn_like
from transformers import Qwen3Config, Qwen3ForCausalLM

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.policy_shape import PolicyShape

_ZERO_IN_INSERTED_BLOCKS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def grow(core: Qwen3ForCausalLM, shape: PolicyShape, *, spread: float = 0.0) -> Qwen3ForCausalLM:
    """A new model of the given shape whose logits are the core's, to rounding.

    Args:
        core: Left as it is. Its blocks stay in order, inserted ones follow each of them.
        shape: Every linear dimension is the same multiple of the core's; `head_dim` and `tied_embeddings` are equal,
            and there are at least as many layers.
        spread: Standard deviation of random differences between the copies of a weight that read copies of the same
            unit, relative to that of their row. The differences sum to zero, so that they change no output, yet give
            every copy a gradient of its own. Drawn, like inserted blocks, from torch's default generator.

    Raises:
        ConfigError: The core cannot be grown to this shape.
    """
    copies = _copies(core.config, shape)
    grown = Qwen3ForCausalLM(_grown_config(core.config, shape)).to(core.device, core.dtype)
    layer_of = {index * shape.num_layers // len(core.model.layers): index for index in range(len(core.model.layers))}
    with no_grad():
        for name, weight in grown.named_parameters():  # a tied output head is not among them
            source_name = _source_name(name, layer_of)
            if source_name is not None:
                weight.copy_(_widened(name, core.get_parameter(source_name), weight, spread))
            elif name.endswith(_ZERO_IN_INSERTED_BLOCKS):
                weight.zero_()
        if shape.tied_embeddings:  # the output head cannot divide by the copies: it is the embedding
            grown.model.norm.weight /= copies
    grown.generation_config = core.generation_config
    return grown.train(core.training)


def _copies(config: Qwen3Config, shape: PolicyShape) -> int:
    """How often every unit of the core appears."""
    copies = shape.hidden_size // config.hidden_size
    wanted = {
        "hidden_size": copies * config.hidden_size,
        "intermediate_size": copies * config.intermediate_size,
        "num_heads": copies * config.num_attention_heads,
        "num_kv_heads": copies * config.num_key_value_heads,
        "head_dim": config.head_dim,
        "tied_embeddings": config.tie_word_embeddings,
        "num_layers": max(shape.num_layers, config.num_hidden_layers),
    }
    for name, value in wanted.items():
        if getattr(shape, name) != value:
            raise ConfigError(
                f"the core cannot be grown to {name} {getattr(shape, name)}: it must be {value} where hidden_size "
                f"goes from {config.hidden_size} to {shape.hidden_size} and num_layers from {config.num_hidden_layers}"
            )
    return copies


def _grown_config(config: Qwen3Config, shape: PolicyShape) -> Qwen3Config:
    return Qwen3Config(
        **{
            **config.to_dict(),
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "initializer_range": shape.hidden_size**-0.5,
            "layer_types": None,  # one entry a layer, made anew
        }
    )


def _source_name(name: str, layer_of: dict[int, int]) -> str | None:
    """The core's name of a grown model's weight; None in an inserted block."""
    prefix = "model.layers."
    if not name.startswith(prefix):
        return name
    index, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{layer_of[int(index)]}.{rest}" if int(index) in layer_of else None


def _widened(name: str, source: Tensor, like: Tensor, spread: float) -> Tensor:
    """`source` in copies, of the size of `like`; what reads copies of one unit sums up to what read that unit.

    Heads are copied as a whole sequence, so query heads still follow the same key and value heads.
    """
    repeats = [new // old for new, old in zip(like.shape, source.shape, strict=True)]
    weight = source.repeat(repeats)
    if source.ndim == 1 or name == "model.embed_tokens.weight":
        return weight
    weight = weight / repeats[1]
    differences = randn_like(weight).unflatten(1, (repeats[1], -1))
    differences = (differences - differences.mean(1, keepdim=True)).flatten(1)
    return weight + spread * weight.std(1, keepdim=True) * differences
