"""The process that measures a latency profile: `CalibrationRequest` as JSON on stdin, the profile in its file.

An engine leaves threads, thread bindings and distributed state in the process that starts it; this one ends.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from efficient_rollout.config import Settings
from efficient_rollout.cost_model.profile import save_profile
from efficient_rollout.errors import EfficientRolloutError
from efficient_rollout.measuring.probe import ProbeSettings, calibrate_engine
from efficient_rollout.policy_config import read_policy_config
from efficient_rollout.provenance import provenance

_SPARE_TOKENS = 512  # beside a point's context: what a point decodes, with the most drafts


def probe_settings(max_positions: int, max_draft_tokens: int, **engine: Any) -> ProbeSettings:
    """Return the usual points of `calibrate`, as far as they fit a policy and an engine's drafts, the largest k too."""
    usual = ProbeSettings(**engine)
    contexts = tuple(c for c in usual.contexts if c + _SPARE_TOKENS <= max_positions)
    lengths = (*(k for k in usual.lengths if k < max_draft_tokens), max_draft_tokens)
    return replace(usual, contexts=contexts or (max(1, max_positions // 4),), lengths=lengths)


def _run(model: str, settings: dict[str, Any], out: str, **engine: Any) -> None:
    parsed = Settings.parse(settings, where="the calibration request")
    max_positions = read_policy_config(model).max_positions
    probe = probe_settings(max_positions, parsed.controller.max_draft_tokens, **engine)
    profile = calibrate_engine(model, parsed, probe, provenance={"source": "engine start", **provenance()})
    save_profile(profile, Path(out))


def main() -> int:
    """Run; return exit code 2, with the reason as the last line, where it cannot be done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(**json.load(sys.stdin))
    except EfficientRolloutError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
