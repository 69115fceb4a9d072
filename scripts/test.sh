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
num_parts=0 num_empty=0
run_tests() { # a part of the tests, in an environment; one that the arguments choose nothing of is no failure
  local code=0
  "$1/bin/python" -m pytest "${@:2}" || code=$?
  num_parts=$((num_parts + 1))
  if ((code == 5)); then
    num_empty=$((num_empty + 1))
    code=0
  fi
  return "$code"
}

# Most of the time goes to starting processes that use one core each; with more than two, engines would wait for cores.
check run_tests .venv --numprocesses=2 "$@"
check run_tests .venv --several-cores "$@"
# Triton is a gigabyte that engines on a CPU are tested without.
if ((!$#)) || [[ -d .venv-triton ]]; then
  bash scripts/install.sh --triton
  check run_tests .venv-triton --triton --numprocesses=2 "$@"
else
  echo "test: the CUDA path's tests are left out; for them, once: bash scripts/install.sh --triton"
fi
# OpenRLHF imports DeepSpeed, which jobs of veRL are tested without.
if ((!$#)) || [[ -d .venv-openrlhf ]]; then
  bash scripts/install.sh --openrlhf
  check run_tests .venv-openrlhf --openrlhf --numprocesses=2 "$@"
else
  echo "test: the OpenRLHF plugin's tests are left out; for them, once: bash scripts/install.sh --openrlhf"
fi
if ((num_empty == num_parts)); then
  echo "test: the arguments choose no test" >&2
  status=5
fi
if ((status == 0)); then echo "test: all passed"; fi
exit "$status"
