"""What the machine of a job's process lacks, stood in for: to be imported before anything of OpenRLHF's.

Some of it imports GPU packages, and takes functions out of modules.
"""

from efficient_rollout.engine.environment import device_type
from efficient_rollout.openrlhf_plugin import flash_attention

flash_attention.stand_in()
IS_ON_CPU = device_type() == "cpu"
if IS_ON_CPU:
    from efficient_rollout.openrlhf_plugin import cpu

    cpu.install()
