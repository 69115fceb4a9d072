"""Side-by-side rollouts on real engines, and the latency profile measured on one."""
