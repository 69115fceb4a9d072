"""Every setting, with its bounds. One tree, parsed once, carried as a plain dict between processes.

In veRL it stands under `actor_rollout_ref.rollout.custom.efficient_rollout`; in vLLM under
`additional_config["efficient_rollout"]`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efficient_rollout.errors import ConfigError
from efficient_rollout.rule_table import RULES, RULES_WITH_PROFILE

CONFIG_KEY = "efficient_rollout"
Lookup = Literal["off", "own", "group"]
SchemeName = Literal["int8", "int4", "fp8", "unquantized"]
SCHEME_NAMES: tuple[str, ...] = get_args(SchemeName)
if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[tuple(RULES)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrafterSettings(_Group):
    """Says how the policy is quantized to draft for itself."""

    scheme: SchemeName = Field(
        default="int8",
        description="int8: W8A8, per output channel. int4: weight only, group-wise, asymmetric. "
        "fp8: e4m3 weights and activations, per output channel, on GPUs that multiply it. "
        "unquantized: the policy itself, for tests; every draft is accepted.",
    )
    group_size: Literal[32, 64, 128] = Field(default=64, description="Input channels that share an int4 scale.")
    lookup: Literal["auto", "off", "own", "group"] = Field(
        default="auto",
        description="Where tokens are copied from that draft passes check several at a time: own, the request's text; "
        "group, that and ended responses to the same prompt, on a CPU; off, nowhere. auto: own on a CPU; off on a GPU, "
        "where it has not been measured.",
    )
    attention_window_tokens: int | None = Field(
        default=None,
        ge=1,
        description="The drafter attends to the first few and the last so many tokens, in whole blocks of the KV "
        "cache; unset, to all. The policy always attends to all.",
    )
    quantize_output_head: bool = Field(
        default=True, description="Quantize the drafter's output head too; the policy's own head stays untouched."
    )

    def lookup_on(self, device: str) -> Lookup:
        """Return where copies come from, on a device as in `torch.device.type`."""
        if self.lookup != "auto":
            return self.lookup
        return "own" if device == "cpu" else "off"


class ControllerSettings(_Group):
    """Says how many tokens to draft, which is decided at every engine tick."""

    rule: RuleName = Field(
        default="batch_threshold",
        description=f"Which rule decides; {', '.join(RULES_WITH_PROFILE)} predict from a profile.",
    )
    profile: str | None = Field(
        default=None,
        description="Latency profile of this machine and policy, made by `efficient-rollout calibrate`; unset: the "
        "cached one, measured first where there is none.",
    )
    max_draft_tokens: int = Field(default=4, ge=1, le=16, description="Upper bound of every decision.")
    num_draft_tokens: int | None = Field(
        default=None, ge=1, le=16, description="Draft tokens when drafting; unset means max_draft_tokens."
    )
    validation_max_draft_tokens: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="In a training job, the longest draft of a validation's requests; 0 drafts none. Unset: as in "
        "training.",
    )
    max_running_requests: int = Field(
        default=8, ge=1, description="batch_threshold drafts only at or below this many requests."
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        for name in ("num_draft_tokens", "validation_max_draft_tokens"):
            value = getattr(self, name)
            if value is not None and value > self.max_draft_tokens:
                raise ValueError(f"{name} ({value}) must not exceed max_draft_tokens ({self.max_draft_tokens})")
        return self


class Settings(_Group):
    """Holds the whole tree."""

    enabled: bool = Field(
        default=True, description="false: plain vLLM, with the same rollout name; the baseline of a comparison."
    )
    verify_kernel: Literal["auto", "stock", "native"] = Field(
        default="auto",
        description="Whose products the policy's own linear layers are computed with, verifying and decoding: vLLM's "
        "(stock) or this package's for AVX2 and float32 (native). auto: native where there is no AVX512.",
    )
    rollout_seed: int | None = Field(
        default=None,
        ge=0,
        description="In a training job every request gets a seed of its own, which no other has, from this one, its "
        "prompt's place in the run and the sample, so that a run samples the same tokens whatever its engines, their "
        "load, or drafting, and however often it was resumed; unset, requests have none.",
    )
    gpu_certificate: Literal["required", "warn"] | None = Field(
        default=None,
        description="On a GPU without a certificate of `efficient-rollout gpu-check`: required refuses to draft, warn "
        "says so and drafts; a check that failed refuses either way. Unset: required in training jobs, else warn.",
    )
    gpu_certificate_path: str | None = Field(
        default=None, description="Certificate that nodes of one kind share; unset, this user's own."
    )
    drafter: DrafterSettings = DrafterSettings()
    controller: ControllerSettings = ControllerSettings()

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None, *, where: str = CONFIG_KEY) -> "Settings":
        """Validate `raw`; None means every default.

        Args:
            raw: Nested mapping, as it comes from hydra or JSON.
            where: Path of `raw` in the user's own configuration, for the error message.

        Raises:
            ConfigError: A key is unknown, or a value has the wrong type or is out of range. The message
                lists every fault, and the legal keys or values.
        """
        try:
            return cls.model_validate({} if raw is None else dict(raw))
        except ValidationError as error:
            raise ConfigError(_explain(error, where)) from None

    def for_training(self) -> "Settings":
        """Return these, with what a training job wants where they leave it open: a GPU that was checked."""
        return self if self.gpu_certificate is not None else self.model_copy(update={"gpu_certificate": "required"})

    def with_lookup(self, lookup: Lookup) -> "Settings":
        """Return these, with copies taken from there; passes of the drafter are timed without."""
        return self.model_copy(update={"drafter": self.drafter.model_copy(update={"lookup": lookup})})

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dict of JSON types; `parse(to_dict())` gives an equal tree."""
        return self.model_dump(mode="json")


def _explain(error: ValidationError, where: str) -> str:
    lines = [f"invalid settings under `{where}`:"]
    for fault in error.errors():
        location = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            legal = ", ".join(_settings_at(fault["loc"][:-1]))
            lines.append(f"  {location}: unknown setting; legal here: {legal}")
        else:
            lines.append(f"  {location or '(whole tree)'}: {fault['msg']}, got {fault['input']!r}")
    return "\n".join(lines)


def _settings_at(path: tuple[int | str, ...]) -> list[str]:
    group: Any = Settings
    for part in path:
        group = group.model_fields[part].annotation
    return list(group.model_fields)
