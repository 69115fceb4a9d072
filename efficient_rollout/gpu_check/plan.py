"""The steps of the check, cheap ones first."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Describes one step, in a process of its own."""

    name: str  # of its log and its results
    function: str  # "module:function", of a stand
    limit_s: float  # seconds after which it is ended, and has failed
    certifies: bool = True  # whether drafting is refused where it fails; the others only measure
    engines_apart: bool = False  # whether its engines, which stand beside each other, have processes of their own


_ROOM = "efficient_rollout.gpu_check."
# Minutes go to starting engines, and to compiling what none has compiled before.
STEPS = (
    Step("operators", f"{_ROOM}operators:check_operators", 300),
    Step("kernels", f"{_ROOM}kernels:check_kernels", 900),
    Step("products", f"{_ROOM}products:check_products", 600),
    Step("same-samples", f"{_ROOM}samples:check_same_samples", 1800),
    Step("graphs", f"{_ROOM}graphs:check_graphs", 1800),
    Step("distribution", f"{_ROOM}distribution:check_distribution", 1800),
    Step("faults", f"{_ROOM}syncs:check_faults", 900),
    Step("sync", f"{_ROOM}syncs:check_sync", 1200),
    Step("sleep", f"{_ROOM}syncs:check_sleep", 1200),
    # Before the two that take its numbers: what a policy's own drafts are worth.
    Step("acceptance", f"{_ROOM}rollout:check_acceptance", 7200, certifies=False),
    Step("latency", f"{_ROOM}latency:check_latency", 7200, certifies=False),
    Step("rollout", f"{_ROOM}rollout:check_rollout", 7200, certifies=False, engines_apart=True),
)
# What certifies in eight minutes: the kernels, and one shape of engine. Steps behind it go on in a later run.
QUICK_STEPS = (
    Step("operators", f"{_ROOM}operators:check_operators", 40),
    Step("kernels", f"{_ROOM}kernels:check_kernels", 120),
    Step("products", f"{_ROOM}products:check_products", 60),
    Step("quick", f"{_ROOM}graphs:check_quick", 260),
)
# What needs torch and Triton alone, in three minutes.
KERNEL_STEPS = (
    Step("kernels", f"{_ROOM}kernels:check_kernels", 80),
    Step("requantizing", f"{_ROOM}kernels:measure_requantizing", 60, certifies=False),
    Step("sampling", f"{_ROOM}sampling:check_sampling", 40, certifies=False),
)
EXIT_FAILED = 1
