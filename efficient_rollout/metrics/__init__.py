"""Every metric name once, and per-rollout statistics that merge across engines."""
