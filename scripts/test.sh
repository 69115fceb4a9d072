#!/usr/bin/env bash
# Install if needed, then lint, type-check and test. Arguments go to pytest:
#     bash scripts/test.sh                        every kind of claim once: 20 minutes on 2 cores, install included
#     bash scripts/test.sh --all                  everything, hours: before a release, and each night
#     bash scripts/test.sh tests/unit -k config   a part
# Exit code: 0 when all is well; the first failing tool's otherwise, after every tool has run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ "${1:-}" == --all ]]; then
  set -- -m "" "${@:2}"
  whole=1
else
  whole=$((!$#))
fi

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

# Two environments beside it, for what it is tested without: Triton, a gigabyte, and OpenRLHF, which brings DeepSpeed.
# They are installed while one core lints.
beside=()
for name in triton openrlhf; do
  if ((whole)) || [[ -d ".venv-$name" ]]; then
    beside+=("$name")
  else
    echo "test: left out: tests that need .venv-$name; for them, once: bash scripts/install.sh --$name"
  fi
done
install_beside() {
  local name
  for name in "${beside[@]}"; do bash scripts/install.sh "--$name"; done
}
install_beside &
installing=$!
trap 'kill "$installing" 2>/dev/null || true' EXIT
check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/mypy
check wait "$installing"

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
for name in "${beside[@]}"; do
  check run_tests ".venv-$name" "--$name" --numprocesses=2 "$@"
done
if ((num_empty == num_parts)); then
  echo "test: the arguments choose no test" >&2
  status=5
fi
if ((status == 0)); then echo "test: all passed"; fi
exit "$status"
