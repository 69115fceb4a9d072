#!/usr/bin/env bash
# Install if needed, then lint, type-check and test. Arguments go to pytest:
#     bash scripts/test.sh                        everything that takes less than minutes
#     bash scripts/test.sh -m slow                training with drafting on and off, compared
#     bash scripts/test.sh tests/unit -k config   a part
# Exit code: 0 when all is well; the first failing tool's otherwise, after every tool has run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh

status=0
check() {
  echo "test: $*"
  local code=0
  "$@" || code=$?
  if ((code != 0)); then
    echo "test: FAILED with exit code $code: $*" >&2
    if ((status == 0)); then status=$code; fi
  fi
}

check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/mypy
nothing_chosen=0
run_tests() { # a part of the tests; one that the arguments choose nothing of is no failure
  local code=0
  .venv/bin/python -m pytest "$@" || code=$?
  if ((code == 5)); then
    nothing_chosen=$((nothing_chosen + 1))
    if ((nothing_chosen < 2)); then code=0; fi
  fi
  return "$code"
}

# Most of the time goes to starting processes that use one core each; with more than two, engines would wait for cores.
check run_tests --numprocesses=2 "$@"
check run_tests --several-cores "$@"
if ((status == 0)); then echo "test: all passed"; fi
exit "$status"
