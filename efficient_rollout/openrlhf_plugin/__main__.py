"""`python -m efficient_rollout.openrlhf_plugin`: the same as `efficient-rollout openrlhf`, for `ray job submit`."""

import sys

from efficient_rollout.openrlhf_plugin.main import launch

if __name__ == "__main__":
    raise SystemExit(launch(sys.argv[1:]))
