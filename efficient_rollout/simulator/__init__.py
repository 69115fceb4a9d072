"""Replay a rollout under a policy, for fleets larger than this machine."""
