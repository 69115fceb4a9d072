"""The wheel that users install, environments with and without it, and packages that stand in for others."""

import site
import subprocess
import sys
import venv
from pathlib import Path

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def build_wheel(repository: Path, folder: Path) -> Path:
    """Build the checkout's wheel, without isolation, into a folder."""
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    subprocess.run([*_PIP, "wheel", *options, str(repository)], check=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def write_package(folder: Path, name: str, source: str, entry_points: str) -> None:
    """Files of an installed package of one module, in a folder that is to be on the import path."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(entry_points)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")


def make_environment(folder: Path, wheel: Path | None) -> Path:
    """An environment that sees the packages of this one but for this package, which it has from the wheel, if given.

    Returns:
        Its folder of programs.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for entry in (entry for place in site.getsitepackages() for entry in Path(place).iterdir()):
        # An editable install is a .pth file, the metadata, and the files that are no modules.
        if "efficient_rollout" not in entry.name and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    programs = folder / "bin"
    if wheel is not None:
        subprocess.run([*_PIP, "--python", str(programs / "python"), "install", "--no-deps", str(wheel)], check=True)
    return programs
