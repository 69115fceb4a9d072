"""The controller's policies, made from the settings."""

from efficient_rollout.config import ControllerSettings
from efficient_rollout.controller.policy import Always, BatchThreshold, Never, Policy


def policy_from(settings: ControllerSettings) -> Policy:
    """The policy the settings name; which names are legal is checked where the settings are parsed."""
    if settings.policy == "never":
        return Never()
    if settings.policy == "always":
        return Always(settings.draft_tokens_when_drafting)
    return BatchThreshold(settings.draft_tokens_when_drafting, settings.max_running_requests)
