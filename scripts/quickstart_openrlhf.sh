#!/usr/bin/env bash
# Install OpenRLHF and this package into .venv-openrlhf if needed, train the small policy with OpenRLHF's GRPO and
# self-drafting for a few steps, and show what the rollouts did. Needs no GPU.
#     bash scripts/quickstart_openrlhf.sh [settings]     e.g. --efficient_rollout.controller.rule=always
#     bash scripts/quickstart_openrlhf.sh [settings] -- [OpenRLHF's arguments]     they win over those below
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
RUN="$ROOT/runs/quickstart_openrlhf"
COMMAND="$ROOT/.venv-openrlhf/bin/efficient-rollout"
STEPS=5
PROMPTS=16 # a step
source "$ROOT/scripts/heartbeat.sh"

train_progress() {
  if [[ -f "$RUN/metrics.jsonl" ]]; then
    echo "$(wc -l <"$RUN/metrics.jsonl") of $STEPS steps"
  else
    echo "starting Ray, DeepSpeed and vLLM"
  fi
}

settings=()
while (($#)) && [[ "$1" != -- ]]; do
  settings+=("$1")
  shift
done
if (($#)); then shift; fi

bash "$ROOT/scripts/install.sh" --openrlhf
cd "$ROOT"
mkdir -p "$RUN"
rm -f "$RUN/metrics.jsonl"

POLICY="$("$COMMAND" policy --size small | sed -n 1p)"
"$COMMAND" data --size small --out "$RUN" --num-train $((STEPS * PROMPTS)) --num-validation 16 >"$RUN/data.log" 2>&1 ||
  fail_with_log "$RUN/data.log" "the data could not be written; the whole log is $RUN/data.log"

echo "quickstart: $STEPS GRPO steps of OpenRLHF, self-drafting on"
with_heartbeat train "$RUN/train.log" train_progress "$COMMAND" openrlhf \
  --cpu.param_dtype=float32 --cpu.kv_cache_bytes=536870912 "${settings[@]}" -- \
  --actor.model_name_or_path "$POLICY" --actor.num_gpus_per_node 1 --vllm.num_engines 1 --vllm.enforce_eager \
  --ds.attn_implementation sdpa --vllm.sync_backend gloo --algo.advantage.estimator group_norm --algo.kl.init_coef 0 \
  --algo.advantage.is_correction_level token --algo.advantage.is_correction_threshold 0 1000000000 \
  --reward.remote_url "$ROOT/efficient_rollout/tasks/reward_func.py" --data.prompt_dataset "$RUN/train.parquet" \
  --data.input_key prompt --data.label_key label --data.apply_chat_template --data.max_len 320 \
  --rollout.max_new_tokens 256 --rollout.batch_size $PROMPTS --rollout.n_samples_per_prompt 4 \
  --rollout.micro_batch_size 16 --train.batch_size $((PROMPTS * 4)) --train.micro_batch_size 16 \
  --actor.adam.lr 1e-4 --actor.lr_scheduler constant --ckpt.output_dir "$RUN" "$@" ||
  fail_with_log "$RUN/train.log" "training failed; the whole log is $RUN/train.log"

"$COMMAND" summary "$RUN"
"$COMMAND" report "$RUN"
