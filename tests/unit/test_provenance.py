"""The provenance of a number."""

import json
import subprocess
from pathlib import Path

from efficient_rollout import provenance


def test_certificate_is_complete_and_json(monkeypatch):
    monkeypatch.setattr("sys.argv", ["efficient-rollout", "train", "x=1"])
    certificate = json.loads(json.dumps(provenance.provenance()))
    assert certificate["argv"] == ["efficient-rollout", "train", "x=1"]
    assert certificate["packages"]["efficient-rollout"]
    assert certificate["hardware"]["num_cores"] >= 1
    assert certificate["hardware"]["memory_bytes"] > 2**28


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_of_a_checkout(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert provenance.git_commit(package) is None
    (package / "module.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit(package) == commit
    (package / "module.py").write_text("x = 2\n")
    assert provenance.git_commit(package) == f"{commit}-dirty"
