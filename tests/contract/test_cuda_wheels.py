"""vLLM's CUDA wheels of the supported range, and the first behind it, have what the GPU path stands on.

They are downloaded and unpacked, not installed: 300 MB and half a minute each.
"""

import re
import subprocess

import pytest

from efficient_rollout.upstream import supported_versions

VERSIONS = ("0.31.0", "0.32.0", "0.33.0")


@pytest.mark.slow
def test_the_wheels_keep_the_contract(repository):
    command = ["bash", str(repository / "scripts" / "gpu_contract.sh"), *VERSIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.findall(r"^gpu_contract: (\S+): no breaches", done.stdout, re.MULTILINE) == list(VERSIONS)


def test_they_are_the_supported_range_and_one_more():
    supported = supported_versions("vllm")
    minors = [int(version.split(".")[1]) for version in VERSIONS]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert [supported.contains(version) for version in VERSIONS] == [True] * (len(VERSIONS) - 1) + [False]
    assert not supported.contains(f"0.{minors[0] - 1}.0")
