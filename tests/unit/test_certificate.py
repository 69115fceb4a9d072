"""A machine drafts with a certificate of its own, and with no other; its digest follows what code does."""

from pathlib import Path

import pytest

from efficient_rollout.certificate import (
    Certificate,
    Machine,
    certificate_gap,
    certificate_path,
    read_certificate,
    require_certificate,
    sources_digest,
)
from efficient_rollout.config import Settings
from efficient_rollout.errors import InputFileError, UnsupportedDeviceError
from efficient_rollout.openrlhf_plugin.options import parse_options

HERE = Machine(
    gpu="NVIDIA H100", capability="9.0", driver="580.1", packages={"vllm": "0.31.0", "torch": "2.13.0"}, sources="abc"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def certified(machine=HERE, outcome="passed", failed_step=None):
    return Certificate(
        machine=machine,
        outcome=outcome,
        steps=("operators",),
        failed_step=failed_step,
        time="2026-11-27T00:00:00Z",
        commit=None,
    )


def test_a_machine_without_one_is_refused_with_the_command():
    with pytest.raises(UnsupportedDeviceError, match=r"NVIDIA H100.*efficient-rollout gpu-check"):
        require_certificate(HERE)


def test_its_own_is_taken():
    certified().write(certificate_path(HERE))
    require_certificate(HERE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"driver": "590.2"}, "driver is 580.1 here, and 590.2 there"),
        ({"packages": {"vllm": "0.32.0", "torch": "2.13.0"}}, "vllm is 0.31.0 here, and 0.32.0 there"),
        ({"packages": {"vllm": "0.31.0"}}, "torch is 2.13.0 here, and None there"),
        ({"sources": "abd"}, "sources is abc here"),
    ],
)
def test_another_machine_s_is_refused(tmp_path, change, words):
    path = tmp_path / "shared.json"
    certified(HERE.model_copy(update=change)).write(path)
    with pytest.raises(UnsupportedDeviceError, match=f"another machine's.*{words}"):
        require_certificate(HERE, str(path))


def test_one_that_failed_is_refused_with_the_step():
    certified(outcome="failed", failed_step="kernels").write(certificate_path(HERE))
    with pytest.raises(UnsupportedDeviceError, match="failed at its step 'kernels'"):
        require_certificate(HERE)


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2}', "[1]"])
def test_a_file_that_is_none_is_refused(text):
    path = certificate_path(HERE)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputFileError, match=r"is no certificate: .*efficient-rollout gpu-check"):
        require_certificate(HERE)


def test_nodes_of_one_kind_share_one_through_a_path(tmp_path):
    path = tmp_path / "of the cluster" / "h100.json"
    certified().write(path)
    require_certificate(HERE, str(path))
    with pytest.raises(InputFileError, match="cannot read the certificate"):
        require_certificate(HERE, str(tmp_path / "elsewhere.json"))
    assert read_certificate(path).outcome == "passed"


def test_every_machine_has_a_file_of_its_own():
    assert certificate_path(HERE) != certificate_path(HERE.model_copy(update={"driver": "590.2"}))


def test_a_gap_is_told_and_a_failed_check_is_refused_where_none_is_required(tmp_path):
    assert "NVIDIA H100" in certificate_gap(HERE)
    certified(HERE.model_copy(update={"driver": "590.2"})).write(tmp_path / "shared.json")
    assert "another machine's" in certificate_gap(HERE, str(tmp_path / "shared.json"))
    certified(outcome="failed", failed_step="kernels").write(certificate_path(HERE))
    with pytest.raises(UnsupportedDeviceError, match="failed at its step 'kernels'"):
        certificate_gap(HERE)
    certified().write(certificate_path(HERE))
    assert certificate_gap(HERE) is None


def test_training_requires_one_unless_it_says_otherwise():
    assert Settings().gpu_certificate is None
    assert Settings().for_training().gpu_certificate == "required"
    assert Settings(gpu_certificate="warn").for_training().gpu_certificate == "warn"
    assert parse_options(["--", "x"]).settings.gpu_certificate == "required"


FILES = {
    "drafter/cuda/kernel.py": '"""One."""\nfrom package.drafter.packed import pack\n\n\ndef run(x): return pack(x)\n',
    "drafter/packed.py": "def pack(x):\n    return x\n",
    "drafter/cpu/kernel.py": "x = 1\n",
    "engine/gpu/worker.py": "x = 1\n",
    "engine/cpu/worker.py": "x = 1\n",
    "metrics/names.py": "x = 1\n",
    "gpu_check/plan.py": "x = 1\n",
}


@pytest.fixture
def package(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "package"


@pytest.mark.parametrize("name", FILES)
def test_code_for_gpus_counts_and_a_cpu_s_or_another_room_s_does_not(package, name):
    before = sources_digest(package)
    (package / name).write_text(FILES[name] + "\n\nx = 2\n")
    counts = name in ("drafter/cuda/kernel.py", "drafter/packed.py", "engine/gpu/worker.py")
    assert (sources_digest(package) != before) is counts


def test_docstrings_comments_and_layout_do_not_count(package):
    before = sources_digest(package)
    (package / "drafter/cuda/kernel.py").write_text(
        '"""Another text."""\nfrom package.drafter.packed import pack\n\n'
        'def run(x):\n    """Runs."""\n    return pack(  # so\n        x)\n'
    )
    assert sources_digest(package) == before
