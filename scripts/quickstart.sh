#!/usr/bin/env bash
# Install if needed, make or reuse the small policy, train it with GRPO and self-drafting for a few steps, and show
# what the rollouts did: a table, and the path of a page of figures.
#     bash scripts/quickstart.sh [hydra overrides]     e.g. controller=always, or trainer.total_training_steps=10
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
RUN="$ROOT/runs/quickstart"
COMMAND="$ROOT/.venv/bin/efficient-rollout"
STEPS=5
source "$ROOT/scripts/heartbeat.sh"

fail() { # message, log
  tail -n 25 "$2" >&2
  printf 'quickstart: %s; the whole log is %s\n' "$1" "$2" >&2
  exit 1
}

policy_progress() { tail -n 1 "$RUN/policy.log"; }

train_progress() {
  if [[ -f "$RUN/metrics.jsonl" ]]; then
    echo "$(wc -l <"$RUN/metrics.jsonl") of $STEPS steps"
  else
    echo "starting Ray, veRL and vLLM"
  fi
}

bash "$ROOT/scripts/install.sh"
cd "$ROOT"
mkdir -p "$RUN"
rm -f "$RUN/metrics.jsonl"

echo "quickstart: the small policy (trained on first use, about 3 minutes)"
with_heartbeat policy "$RUN/policy.log" policy_progress "$COMMAND" policy --size small ||
  fail "the policy could not be made" "$RUN/policy.log"

echo "quickstart: $STEPS GRPO steps, self-drafting on"
with_heartbeat train "$RUN/train.log" train_progress "$COMMAND" train size=small recipe=grpo \
  "trainer.total_training_steps=$STEPS" trainer.val_before_train=false trainer.test_freq=-1 trainer.save_freq=-1 \
  "trainer.default_local_dir=$RUN" "$@" ||
  fail "training failed" "$RUN/train.log"

"$COMMAND" summary "$RUN"
"$COMMAND" report "$RUN"
