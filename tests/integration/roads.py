"""Which files of the package a call runs: what somebody reads who follows it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import efficient_rollout

_ROOT = Path(efficient_rollout.__file__).parent


def files_run(call: Callable[[], Any]) -> list[str]:
    """Paths, in the package, of the modules that have a function run by `call`, in this thread."""
    seen = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return sorted(str(Path(name).relative_to(_ROOT)) for name in seen if Path(name).is_relative_to(_ROOT))


def files_of_a_tick(engine: Any, params: Any) -> list[str]:
    """Those of one tick that verifies drafts and drafts anew; the engine is in this process."""
    core = engine.llm_engine
    core.add_request("road", {"prompt_token_ids": [5, 6, 7]}, params)
    for _ in range(5):
        core.step()
    found = files_run(core.step)
    while core.has_unfinished_requests():
        core.step()
    return found
