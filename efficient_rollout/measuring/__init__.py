"""Engines that are measured: offline runs, scripted drafts, latency probes. No engine of a user's imports this."""
