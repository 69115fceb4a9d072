"""Compile the kernels once, keep the library, and call it with tensors."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

import torch

from efficient_rollout.cache import cache_directory
from efficient_rollout.errors import SchemeUnavailableError
from efficient_rollout.files import written_whole

_SOURCES, _HEADERS = (sorted(Path(__file__).parent.glob(pattern)) for pattern in ("*.c", "*.h"))
_COMPILERS = ("gcc", "clang")
# Instruction sets by name, not the machine's own: a home directory may be shared by different machines.
_FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-fopenmp", "-shared", "-fPIC")
_VNNI_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni")
_COMPILE_TIMEOUT_SECONDS = 120
# What each kernel takes: pointers and sizes.
_ARGUMENTS = {
    "er_f32_attend": "p",
    "er_f32_multiply": "plpllpp",
    "er_f32_pack": "pllp",
    "er_gumbel_draw": "pllppp",
    "er_q4_multiply": "plpplllppp",
    "er_q4_pack": "plllpp",
    "er_q8_multiply": "plpplllppp",
    "er_q8_pack": "plllpp",
}
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long}


def has_avx512() -> bool:
    """Tell whether torch uses AVX512 here, or something above it."""
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AVX10", "AMX"))


def has_vnni() -> bool:
    """Tell whether one instruction sums products of bytes here, as wide as AVX512."""
    return torch.cpu._is_vnni_supported()


def native_missing() -> str | None:
    """Return what the kernels lack here; None when they can run."""
    if not (torch.backends.cpu.get_cpu_capability() == "AVX2" or has_avx512()):
        return "its kernel needs a CPU with AVX2"
    try:
        load_library()
    except SchemeUnavailableError as error:
        return str(error)
    return None


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the kernels; compile them first where the cache has none of this source.

    Raises:
        SchemeUnavailableError: There is no compiler, or it fails or takes too long; the message has its last lines.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise SchemeUnavailableError(f"its kernel is compiled here, and none of {', '.join(_COMPILERS)} is on the PATH")
    flags = (*_FLAGS, *(_VNNI_FLAGS if has_vnni() else ()))
    texts = [path.read_bytes() for path in (*_HEADERS, *_SOURCES)]
    digest = hashlib.sha256(b"".join(texts) + " ".join((compiler, *flags)).encode()).hexdigest()[:16]
    path = cache_directory("kernels") / f"kernels-{digest}.so"
    try:
        if not path.is_file():
            _compile([compiler, *flags], path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise SchemeUnavailableError(
            f"its kernel cannot be kept in {path.parent}: {error}; make room there, or set XDG_CACHE_HOME to a "
            f"directory that can be written"
        ) from error
    for name, types in _ARGUMENTS.items():
        getattr(library, name).argtypes = [_TYPES[letter] for letter in types]
    return library


def _compile(compiler: list[str], path: Path) -> None:
    # Two processes may do this at once: each puts a whole file of the same content there.
    with written_whole(path) as staged:
        command = [*compiler, "-o", str(staged), *map(str, _SOURCES)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise SchemeUnavailableError(
                f"its kernel was not compiled by {compiler[0]} within {_COMPILE_TIMEOUT_SECONDS} s: the machine may be "
                "too busy; start again when it is free"
            ) from error
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()[-40:])
            raise SchemeUnavailableError(f"its kernel could not be compiled by {compiler[0]}: {said}") from error


def address(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a contiguous tensor's first element; NULL for None."""
    return None if tensor is None else tensor.data_ptr()
