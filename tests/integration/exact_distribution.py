"""The exact distribution of a policy's second and third response token, as `efficient-rollout gpu-check` tests it."""

from efficient_rollout.gpu_check.exact_distribution import Sampling, joint_of_second_and_third, p_value, smallest_power

__all__ = ["Sampling", "joint_of_second_and_third", "p_value", "smallest_power"]
