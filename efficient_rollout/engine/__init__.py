"""The only folder that imports vLLM. One engine tick, in order:

1. `scheduler.py` asks how many tokens to draft: `controller/tick.py` answers, from what the drafter's health
   (`controller/drafter_health.py`) allows and what the rule (`controller/rule.py` and its kin, made in `rules.py`)
   chooses. The number travels to the worker in vLLM's own `SchedulerOutput`.
2. `worker.py` runs stock vLLM: one pass of the policy verifies the drafts of the tick before, and samples.
3. `proposer.py` drafts for the next tick, with the drafter that `drafter_model.py` built on the policy's KV cache
   (`draft_plan.py` lays the chain out, `draft_sampling.py` draws), for requests that can use drafts
   (`logits_processors.py` says which cannot).
4. The worker says what it drafted and how it is (`worker_report.py`); `executor.py` keeps the drafts.
5. `scheduler.py` lets stock emit the tokens, one by one where a stop string may end a response (`stop_strings.py`),
   and shows `controller/tick.py` what came of it. Statistics ride to the worker with a later tick.

Between ticks new weights arrive through `weight_sync.py`, and the taps (`tapped_target.py`) let the drafter follow;
while they are incomplete, no token is sampled (`refusal.py`). An engine is made by `engine_args.py`, checked by
`checks.py`, and patched by `ledger.py` alone.
"""
