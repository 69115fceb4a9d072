"""The embedded task: arithmetic with long-tailed worked answers, its reward, and a small policy."""
