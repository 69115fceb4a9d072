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
judge() { # exit code of a part of the tests; one that the arguments choose nothing of is no failure
  num_parts=$((num_parts + 1))
  if (($1 == 5)); then num_empty=$((num_empty + 1)); fi
  return "$(($1 == 5 ? 0 : $1))"
}
run_tests() {
  local code=0
  .venv/bin/python -m pytest "$@" || code=$?
  judge "$code"
}
run_tests_beside() { # in the other environments at once, on a core each: none has work for several all along
  local name code failed=0 core=0 cores
  local -A running=()
  cores="$(nproc)"
  mkdir -p runs
  for name in "${beside[@]}"; do
    taskset -c "$core" ".venv-$name/bin/python" -m pytest "--$name" "$@" >"runs/test_$name.log" 2>&1 &
    running[$name]=$!
    core=$(((core + 1) % cores))
  done
  for name in "${beside[@]}"; do
    code=0
    wait "${running[$name]}" || code=$?
    echo "test: .venv-$name"
    cat "runs/test_$name.log"
    judge "$code" || failed=$code
  done
  return "$failed"
}

# Most of the time goes to starting processes that use one core each; with more than two, engines would wait for cores.
check run_tests --numprocesses=2 "$@"
check run_tests --several-cores "$@"
if ((${#beside[@]})); then check run_tests_beside "$@"; fi
if ((num_empty == num_parts)); then
  echo "test: the arguments choose no test" >&2
  status=5
fi
if ((status == 0)); then echo "test: all passed"; fi
exit "$status"
