"""Replay a rollout under a rule, for fleets larger than this machine."""
