"""Self-drafting rollouts in stock OpenRLHF: the only folder that imports openrlhf.

A job starts through `main.launch`, which puts subclasses in the place of three of OpenRLHF's Ray actors and then runs
OpenRLHF's own entry point. Ray ships the subclasses by name, so every process of the job imports them from here.
"""
