#!/usr/bin/env bash
# Install if needed; answer a few questions with a real language model, by plain vLLM and by self-drafting, and compare
# both; then train the small policy with GRPO for a few steps, with self-drafting and without, and show both: the same
# questions before and after, how fast, and the path of a page of figures.
#     bash scripts/quickstart.sh [hydra overrides]     e.g. controller=always, or trainer.total_training_steps=10
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
RUN="$ROOT/runs/quickstart"
COMMAND="$ROOT/.venv/bin/efficient-rollout"
STEPS=4
source "$ROOT/scripts/heartbeat.sh"

demo_progress() { tail -n 1 "$RUN/demo.txt"; }

train_progress() { # of the arm that runs
  if [[ -f "$RUN/$arm/metrics.jsonl" ]]; then
    echo "$(grep -c '"training/global_step"' "$RUN/$arm/metrics.jsonl") of $STEPS steps"
  else
    echo "0 of $STEPS steps, starting Ray, veRL and vLLM"
  fi
}

bash "$ROOT/scripts/install.sh"
cd "$ROOT"
mkdir -p "$RUN"

echo "quickstart: SmolLM2-135M, plain vLLM and self-drafting in turns, the same questions and seeds"
: >"$RUN/demo.txt"
with_heartbeat demo "$RUN/demo.log" demo_progress bash -c '"$0" demo >"$1"' "$COMMAND" "$RUN/demo.txt" ||
  fail_with_log "$RUN/demo.log" "the demo failed; the whole log is $RUN/demo.log"
cat "$RUN/demo.txt"

for arm in threshold off; do
  if [[ $arm == off ]]; then what="plain vLLM"; else what="self-drafting"; fi
  mkdir -p "$RUN/$arm"
  rm -f "$RUN/$arm/metrics.jsonl"
  echo "quickstart: $STEPS GRPO steps, $what"
  with_heartbeat "train, $what" "$RUN/$arm/train.log" train_progress "$COMMAND" train recipe=grpo_quickstart \
    "efficient_rollout=$arm" "trainer.total_training_steps=$STEPS" "trainer.default_local_dir=$RUN/$arm" "$@" ||
    fail_with_log "$RUN/$arm/train.log" "training failed; the whole log is $RUN/$arm/train.log"
done

"$COMMAND" summary "$RUN/threshold" --against "$RUN/off"
"$COMMAND" report "$RUN/threshold" --baseline "$RUN/off"
