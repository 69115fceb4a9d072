#!/usr/bin/env bash
# Resolve requirements/cpu.in and dev.in into the pinned cpu.txt and dev.txt. Needs uv on the PATH.
#     bash scripts/lock.sh [uv options]      --upgrade moves every pin; --torch-backend cpu finds the CPU build of torch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../requirements"

# Python 3.11 and 3.12 on Linux need the same set; resolve for the older one.
compile() {
  uv pip compile --quiet --python-version 3.11 --annotation-style line \
    --custom-compile-command "bash scripts/lock.sh" "$@"
}
compile cpu.in --override overrides.txt --output-file cpu.txt "$@"
compile dev.in --output-file dev.txt "$@"
