"""Whether the Ray cluster that a job would join answers, and every node of it has this package."""

import os
import socket

import ray
from ray._private.utils import read_ray_address
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from efficient_rollout import __version__
from efficient_rollout.errors import ClusterError, PluginInactiveError

_TIMEOUT_SECONDS = 120
_CONNECT_TIMEOUT_SECONDS = 10
_ADDRESS_VARIABLE = "RAY_ADDRESS"


def require_running_cluster(address: str | None) -> None:
    """Raise where `ray.init(address)` would join a cluster that does not answer: Ray tries again without end.

    A cluster that was killed leaves its address in Ray's own record of the last `ray start`, which `ray.init` follows.

    Args:
        address: The argument of `ray.init`; None or "auto" is whatever Ray finds.

    Raises:
        ClusterError: Names the address, and where it was found.
    """
    places = {
        "ray_init.address": None if address == "auto" else address,
        _ADDRESS_VARIABLE: os.environ.get(_ADDRESS_VARIABLE),
        "Ray's record of the last `ray start` on this machine": read_ray_address(),
    }
    found, chosen = next(((place, named) for place, named in places.items() if named), ("", ""))
    host, _, port = chosen.rpartition(":")
    # "local" starts one; a Ray client ("ray://") says itself what is wrong.
    if not host or not port.isdecimal() or "://" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"the Ray cluster at {chosen} does not answer ({error}); {found} names it. Start it again; or, for a job "
            f"that starts a cluster of its own, set {_ADDRESS_VARIABLE}=local (`ray stop` forgets the record of a "
            "cluster that is gone)"
        ) from error


def require_on_every_node() -> None:
    """Raise unless every other node of the cluster that this process joined has this process's version of the package.

    Raises:
        PluginInactiveError: Names each node, by address and id, that lacks it, has another version, or does not answer.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = {f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})": _ask(node["NodeID"]) for node in others}
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


def _ask(node_id: str) -> ray.ObjectRef:
    # Ray ships it whole: one of a module would be imported there, where the package may be missing.
    def version_here() -> str | None:
        from importlib import metadata

        try:
            return metadata.version("efficient-rollout")
        except metadata.PackageNotFoundError:
            return None

    where = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(version_here).options(num_cpus=0, scheduling_strategy=where).remote()
