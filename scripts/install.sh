#!/usr/bin/env bash
# Install everything into .venv: the pinned CPU packages, the tools, and this package itself, editable.
#     bash scripts/install.sh
#     bash scripts/install.sh --openrlhf      OpenRLHF in .venv-openrlhf, which sees all of .venv
#     bash scripts/install.sh --triton        Triton in .venv-triton, likewise; for tests of the CUDA path
# Uses the package index pip is set up with, and the Python in $PYTHON, or else the first 3.11 or 3.12 found.
# Run it again after an interruption: it takes up what is missing. With nothing to do it returns at once.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
REQUIREMENTS=("$ROOT/requirements/cpu.txt" "$ROOT/requirements/dev.txt")
ONTO=
if [[ "${1:-}" == --openrlhf || "${1:-}" == --triton ]]; then
  ONTO="$VENV"
  VENV="$ROOT/.venv-${1#--}"
  REQUIREMENTS=("$ROOT/requirements/${1#--}.txt")
elif (($#)); then
  echo "install: unknown argument $1; there are only --openrlhf and --triton" >&2
  exit 2
fi
STAMP="$VENV/.efficient_rollout_stamp"
LOG="$VENV/install.log"

source "$ROOT/scripts/heartbeat.sh"

is_supported() { # does "$1" run, as Python 3.11 or 3.12?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
  local candidate path
  if [[ -n "${PYTHON:-}" ]]; then
    is_supported "$PYTHON" || fail "\$PYTHON is $PYTHON, which does not run as Python 3.11 or 3.12"
    echo "$PYTHON"
    return
  fi
  # Every place on the PATH, not the first alone: a version manager's shim may be there and not work.
  for candidate in python3.11 python3.12 python3; do
    while IFS= read -r path; do
      if is_supported "$path"; then
        echo "$path"
        return
      fi
    done < <(type -aP "$candidate")
  done
  fail "no Python 3.11 or 3.12 on the PATH; install one, or name it: PYTHON=/path/to/python3.11 bash scripts/install.sh"
}

choose_python() { # the one .venv has, or a new one's
  local ours="$VENV/bin/python"
  if [[ ! -L "$ours" && ! -e "$ours" ]]; then
    find_python
    return
  fi
  is_supported "$ours" || fail "$ours does not run as Python 3.11 or 3.12; remove the folder $VENV and try again"
  if [[ -n "${PYTHON:-}" && "$("$PYTHON" --version)" != "$("$ours" --version)" ]]; then
    fail "$VENV has $("$ours" --version), and \$PYTHON is another; remove the folder $VENV, or unset \$PYTHON"
  fi
  echo "$ours"
}

check_machine() {
  [[ "$(uname -sm)" == "Linux x86_64" ]] ||
    fail "requirements/cpu.txt is pinned for Linux on x86_64, and this is $(uname -sm)" \
      "resolve it for this machine with scripts/lock.sh, or install vLLM and veRL yourself and then: pip install -e ."
  local compiler
  for compiler in gcc g++; do
    command -v "$compiler" >/dev/null ||
      fail "$compiler is missing; torch compiles kernels with it. On Debian or Ubuntu: apt-get install $compiler"
  done
}

digest() {
  { cat "${REQUIREMENTS[@]}" "$ROOT/pyproject.toml"; echo "$ROOT"; } | sha256sum | cut -d' ' -f1
}

packages_progress() {
  local fetched installed
  installed="$(find "$VENV"/lib/python*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l)"
  fetched="$(grep -cE '^(Collecting|Requirement already satisfied)' "$LOG" || true)"
  echo "$fetched of $NUM_PACKAGES packages fetched, $installed installed"
}

pins() { cat "${REQUIREMENTS[@]}" | grep -oE '^[^#; ]+==[^#; ]+' | sort -u; }

NUM_PIPS=4
SELDOM_IMPORTED='/(tests|anthropic|mypy|pip|setuptools|rllib)/|/torch/testing/_internal/|/transformers/models/|/model_executor/models/'
WHEELS="$VENV/wheels" # those built here
# No --compile: byte code follows on every core at once.
PIP_INSTALL=("$VENV/bin/python" -m pip install
  --no-input --disable-pip-version-check --progress-bar off --no-compile --no-deps)

explain_missing_torch() {
  local pin="$1" version="${1#torch==}"
  fail "the package index pip is set up with has no $pin, the CPU build of torch for $("$VENV/bin/python" --version)." \
    "(Plain 'torch' there brings gigabytes of CUDA libraries.) Either of these gets it; then run this script again:" \
    "  uv, which knows where CPU builds of torch are published:" \
    "    $VENV/bin/python -m pip install uv" \
    "    $VENV/bin/uv pip install --python $VENV/bin/python --no-deps --torch-backend=cpu torch==${version%+cpu}" \
    "  an index or a folder of wheels of your own that has it:" \
    "    PIP_EXTRA_INDEX_URL=<index> bash scripts/install.sh      PIP_FIND_LINKS=<folder> bash scripts/install.sh"
}

# Its setup finds a torch that is installed, and then fails with newer setuptools; without one it is plain Python.
build_deepspeed() {
  local pin bare="$VENV/bare"
  pin="$(grep -oE '^deepspeed==[^ ]+' "${REQUIREMENTS[0]}")"
  if [[ -n "$(find "$WHEELS" -name 'deepspeed-*.whl' -print -quit)" ]]; then return; fi
  "$VENV/bin/python" -m venv "$bare"
  if ! with_heartbeat "deepspeed" "$LOG" : env DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$bare/bin/python" -m pip wheel \
    --no-input --disable-pip-version-check --progress-bar off --no-deps --use-pep517 --wheel-dir "$WHEELS" "$pin"; then
    fail_with_log "$LOG" "pip could not build $pin; see above"
  fi
  rm -r "$bare"
}

# An environment that finds the packages of another one too, this package among them.
install_onto() {
  local site
  site="$(echo "$ONTO"/lib/python*/site-packages)"
  if grep -q '^deepspeed==' "${REQUIREMENTS[0]}"; then build_deepspeed; fi
  if ! with_heartbeat "packages" "$LOG" : "${PIP_INSTALL[@]}" --find-links "$WHEELS" -r "${REQUIREMENTS[0]}"; then
    fail_with_log "$LOG" "pip could not install the pinned packages; see above. Run this script again to go on from here"
  fi
  echo "import site; site.addsitedir('$site')" >"$(echo "$VENV"/lib/python*/site-packages)/onto.pth"
}

install_packages() {
  mkdir -p "$WHEELS"
  if [[ -n "$ONTO" ]]; then
    install_onto
    return
  fi
  local torch_pin
  torch_pin="$(grep -oE '^torch==[^ ]+' "$ROOT/requirements/cpu.txt")"
  # First alone, so that a missing CPU build shows before the other downloads.
  if ! with_heartbeat "torch" "$LOG" : "${PIP_INSTALL[@]}" "$torch_pin"; then
    if grep -q 'No matching distribution found for torch' "$LOG"; then explain_missing_torch "$torch_pin"; fi
    fail_with_log "$LOG" "pip could not install $torch_pin; see above"
  fi
  # The pins are whole and need no resolving: several pips share them out, and none waits for another's download.
  pins >"$VENV/pins.txt"
  if ! with_heartbeat "packages" "$LOG" packages_progress xargs -a "$VENV/pins.txt" \
    -P "$NUM_PIPS" -n "$(((NUM_PACKAGES + NUM_PIPS - 1) / NUM_PIPS))" "${PIP_INSTALL[@]}"; then
    fail_with_log "$LOG" "pip could not install the pinned packages; see above. Run this script again to go on from here"
  fi
  # Some packages ship files that do not compile, which is no fault. What is seldom imported is compiled when it is.
  with_heartbeat "bytecode" "$LOG" : "$VENV/bin/python" -m compileall -q -j 0 -x "$SELDOM_IMPORTED" "$VENV/lib" || true
}

main() {
  local wanted
  wanted="$(digest)"
  mkdir -p "$VENV"
  exec 9>"$VENV/.install.lock"
  if ! flock --nonblock 9; then
    echo "install: another install is at work here; waiting for it"
    flock 9
  fi
  if [[ -f "$STAMP" && "$(cat "$STAMP")" == "$wanted" ]] && "$VENV/bin/python" --version >/dev/null 2>&1; then
    return
  fi
  check_machine
  local python started=$SECONDS
  python="$(choose_python)"
  echo "install: into $VENV with $("$python" --version) ($python)"
  [[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]] ||
    fail "the C headers of $python are missing; torch compiles kernels with them." \
      "On Debian or Ubuntu: apt-get install $(basename "$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")"
  rm -f "$STAMP"
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"
    "$python" -m venv "$VENV"
  fi
  # pip writes RECORD last: a package without one was cut off half way, and pip would take it for installed.
  local half
  for half in "$VENV"/lib/python*/site-packages/*.dist-info; do
    if [[ -d "$half" && ! -f "$half/RECORD" ]]; then rm -r "$half"; fi
  done
  NUM_PACKAGES="$(pins | wc -l)"
  install_packages
  with_heartbeat "efficient-rollout" "$LOG" : "${PIP_INSTALL[@]}" --no-build-isolation --editable "$ROOT" ||
    fail_with_log "$LOG" "pip could not install efficient-rollout itself; see above"
  echo "$wanted" >"$STAMP"
  echo "install: done in $((SECONDS - started)) s"
}

if [[ -n "$ONTO" ]]; then
  bash "$ROOT/scripts/install.sh"
  PYTHON="$ONTO/bin/python"
fi
main
