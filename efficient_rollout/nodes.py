"""Whether every node of a Ray cluster has this package, asked before a job's processes start there."""

from collections.abc import Callable

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from efficient_rollout import __version__
from efficient_rollout.errors import PluginInactiveError

_TIMEOUT_SECONDS = 120


def require_on_every_node() -> None:
    """Raise unless every other node of the cluster that this process joined has this process's version of the package.

    Raises:
        PluginInactiveError: Names each node, by address and id, that lacks it, has another version, or does not answer.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = {_name(node): _ask(node["NodeID"]) for node in others}
    faults = []
    for name, answer in asked.items():
        try:
            version = ray.get(answer, timeout=_TIMEOUT_SECONDS)
        except GetTimeoutError:
            faults.append(f"{name} did not start a Python process within {_TIMEOUT_SECONDS} s")
        except RayError as error:
            faults.append(f"{name} could not be asked: {str(error).splitlines()[-1]}")
        else:
            if version != __version__:
                faults.append(f"{name} has {'none' if version is None else f'version {version}'}")
    if faults:
        raise PluginInactiveError(
            f"efficient-rollout {__version__} must be installed on every node of the Ray cluster, in the Python that "
            f"`ray start` ran in: {'; '.join(faults)}. Install it there (`pip install`, as on this node), and start "
            "Ray on the node again; `efficient-rollout doctor` there says what it finds"
        )


def _name(node: dict[str, str]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _ask(node_id: str) -> ray.ObjectRef:
    where = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(_question()).options(num_cpus=0, scheduling_strategy=where).remote()


def _question() -> Callable[[], str | None]:
    """A function that Ray ships whole: one of a module would be imported there, from a package that may be missing."""

    def version_here() -> str | None:
        from importlib import metadata

        try:
            return metadata.version("efficient-rollout")
        except metadata.PackageNotFoundError:
            return None

    return version_here
