#!/usr/bin/env bash
# Hold vLLM's CUDA wheels against what the GPU path stands on: names and parameters in their Python, and the compiled
# operators' schemas. Needs no GPU, and the environment of scripts/install.sh.
#     bash scripts/gpu_contract.sh VERSION... [pip options]      e.g. 0.31.0 0.32.0, or 0.31.0 --find-links FOLDER
# Downloads 300 MB a version, without dependencies, and removes them again. Takes a minute a version. Exit code: 0 where
# every version keeps the contract; every breach is named.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
source "$ROOT/scripts/heartbeat.sh"

# download FOLDER REQUIREMENT PIP_OPTIONS...: one wheel, for a machine with CUDA
download() {
  local folder="$1" requirement="$2"
  shift 2
  with_heartbeat "$requirement" "$WORK/pip.log" : "$PYTHON" -m pip download --no-input --disable-pip-version-check \
    --progress-bar off --no-deps --only-binary :all: --dest "$folder" "$requirement" "$@" ||
    fail_with_log "$WORK/pip.log" "pip could not download $requirement; see above"
}

main() {
  local versions=() version status=0
  while [[ "${1:-}" =~ ^[0-9] ]]; do
    versions+=("$1")
    shift
  done
  ((${#versions[@]})) || fail "which versions of vllm? e.g. bash scripts/gpu_contract.sh 0.31.0"
  [[ -x "$PYTHON" ]] || fail "install first: bash scripts/install.sh"
  mkdir -p "$ROOT/build"
  WORK="$(mktemp -d "$ROOT/build/gpu_contract.XXXXXX")"
  trap 'rm -rf "$WORK"' EXIT
  # The extension is built for CUDA 13.
  download "$WORK" "nvidia-cuda-runtime==13.*" "$@"
  for version in "${versions[@]}"; do
    download "$WORK/wheels" "vllm==$version" "$@"
    if ! "$PYTHON" "$ROOT/scripts/gpu_contract.py" "$version" "$WORK/wheels"/vllm-*.whl \
      "$WORK"/nvidia_cuda_runtime-*.whl "$WORK/unpacked" 2>"$WORK/check.log"; then
      status=1
      tail -n 5 "$WORK/check.log" >&2
    fi
    rm -rf "$WORK/wheels" "$WORK/unpacked"
  done
  return "$status"
}

main "$@"
