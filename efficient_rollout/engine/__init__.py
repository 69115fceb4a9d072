"""Engines of vLLM that draft for themselves. One engine tick, in order:

1. `scheduler.py` asks how many tokens to draft: `controller/tick.py` answers, from what the drafter's health allows and
   what the rule (`controller/rule.py` and its kin, made in `profiles.py`) chooses. The number travels to the worker in
   vLLM's own `SchedulerOutput`.
2. The worker (`cpu/worker.py`, `gpu/worker.py`, on `worker.py`) runs stock vLLM: one pass of the policy verifies the
   drafts of the tick before, and samples (`cpu/sampling.py`, `gpu/verifier.py`).
3. `cpu/proposer.py` or `gpu/speculator.py` drafts for the next tick, with the drafter that `drafter_model.py` built on
   the policy's KV cache.
4. The worker says what it drafted, and how it is, on the tick's output (`record.py`); `executor.py` keeps the drafts.
5. `scheduler.py` lets stock emit the tokens, counts what requests gained, and shows `controller/tick.py` what came of
   it. Statistics are there when `executor.py` is asked for them (`statistics.py`).

Between ticks new weights arrive through `weights/`, and the taps (`tapped_target.py`) let the drafter follow; while
they are incomplete, no token is sampled. An engine is made by `engine_args.py`, checked by `checks.py` before any
minute is spent, and patched by `ledger.py` alone.
"""
