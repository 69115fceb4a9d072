"""Errors shown to users. Every message says what is wrong, which value, and what to do."""

from efficient_rollout.secrets import text_without_secrets

# What a command's process ends with; the last two by convention, after SIGINT and SIGTERM.
EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143


class EfficientRolloutError(Exception):
    """Is the base of every error this package raises on purpose; its text holds no secret, whoever prints it."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(text_without_secrets(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(EfficientRolloutError, ValueError):
    """A setting is unknown, has the wrong type, or is out of range."""


class UnsupportedVersionError(EfficientRolloutError):
    """An installed veRL, vLLM or torch is not one this package was tested with."""


class UnsupportedDeviceError(EfficientRolloutError):
    """vLLM runs on a device that no engine of this package has run on."""


class UnsupportedModelError(EfficientRolloutError):
    """The policy has a shape the self-drafter cannot handle."""


class SchemeUnavailableError(EfficientRolloutError):
    """A quantization scheme has no kernel on this device, or takes no layer of the policy."""


class ProfileError(EfficientRolloutError):
    """A latency profile is missing, malformed, or belongs to another machine or model."""


class PatchDriftError(EfficientRolloutError):
    """The upstream code a patch replaces is not the code the patch was written for."""


class PluginInactiveError(EfficientRolloutError):
    """The plugin did not load in a process that needs it."""


class ClusterError(EfficientRolloutError):
    """The Ray cluster that a job would join does not answer."""


class WeightSyncError(EfficientRolloutError):
    """New weights for an engine are not a whole policy's, or came through a door that cannot take them."""


class InputFileError(EfficientRolloutError):
    """A model, data set or reward file is missing or unreadable."""


class MissingPackageError(EfficientRolloutError):
    """A command needs an optional package that is not installed."""


def ours_behind(error: BaseException) -> EfficientRolloutError | None:
    """Return the error of this package that another one was raised from, or that Ray carried from another process."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, EfficientRolloutError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
