"""docs/schemes.md is true of the sources: its worked example is carried out on a copy of the package, and tested."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from page_support import apply, code_blocks

from efficient_rollout.config import SCHEME_NAMES, DrafterSettings
from efficient_rollout.drafter.schemes import FLOAT_DTYPES, make_scheme

PAGE = Path("docs/schemes.md")
MODULE = Path("efficient_rollout/drafter/cpu/fp16.py")
BUILT_IN_TESTS = Path("tests/unit/test_drafter_schemes.py")


@pytest.fixture(scope="module")
def fp16(repository, tmp_path_factory) -> ModuleType:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("the example's kernel needs FBGEMM")
    (block,) = code_blocks(repository / PAGE, "python")
    path = tmp_path_factory.mktemp("page") / MODULE.name
    path.write_text(block)
    spec = importlib.util.spec_from_file_location("fp16_of_the_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_example_multiplies_and_requantizes_in_place(fp16, dtype):
    engine = torch.backends.quantized.engine
    weight, bias, x = (random_tensor(*shape, dtype=dtype) for shape in [(0, 96, 512), (1, 96), (2, 2, 3, 512)])
    packed = fp16.Fp16Linear(torch.zeros_like(weight))
    packed.requantize(weight, bias)
    assert torch.backends.quantized.engine == engine
    assert torch.equal(packed.dequantize(), weight.half().float())
    assert torch.equal(packed.dequantize(), fp16.Fp16Linear(weight, bias).dequantize())
    product = packed(x)
    assert (product.shape, product.dtype) == ((2, 3, 96), dtype)
    expected = torch.nn.functional.linear(x.float(), packed.dequantize(), bias.float())
    assert (product.float() - expected).norm() < 0.005 * expected.norm()
    without_bias = fp16.Fp16Linear(weight)(x).float()
    assert (without_bias - expected).norm() > 0.02 * expected.norm()


def test_the_example_counts_its_bytes_and_refuses_another_shape(fp16):
    packed = fp16.Fp16Linear(torch.zeros(96, 512), torch.zeros(96))
    assert packed.num_bytes == 2 * 96 * 512 + 4 * 96
    with pytest.raises(ValueError, match=r"\[96, 512\]"):
        packed.requantize(torch.zeros(96, 1024))


def test_the_page_carried_out_passes_the_tests_it_names(fp16, repository, tmp_path):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("the built-in schemes' tests need vLLM's CPU kernels")
    shutil.copytree(
        repository / "efficient_rollout", tmp_path / "efficient_rollout", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / BUILT_IN_TESTS).parent.mkdir(parents=True)
    for path in (BUILT_IN_TESTS, BUILT_IN_TESTS.with_name("reference_quantizers.py")):
        shutil.copy(repository / path, tmp_path / path)
    shutil.copy(fp16.__file__, tmp_path / MODULE)
    changed = {str(apply(diff, tmp_path)) for diff in code_blocks(repository / PAGE, "diff")}
    assert changed == {"efficient_rollout/drafter/schemes.py", "efficient_rollout/config.py", str(BUILT_IN_TESTS)}
    # In a process of its own, whose working directory comes before the installed package.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(BUILT_IN_TESTS), "-k", "fp16"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= 12, result.stdout


def test_every_scheme_has_a_row_and_its_bytes_are_right(repository):
    text = (repository / PAGE).read_text()
    table = text[text.index("| `drafter.scheme` |") : text.index("\n\n", text.index("| `drafter.scheme` |"))]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    names = tuple(row[0].strip("| `") for row in rows)
    assert names == SCHEME_NAMES
    pytest.importorskip("vllm.platforms", reason="int8 needs vLLM's CPU kernels").current_platform.import_kernels()
    tiles = {row[0].strip("| `"): row[6].strip(" |") for row in rows}
    for name in ("int8", "int4"):
        outputs, inputs = make_scheme(DrafterSettings(scheme=name, group_size=128), "cpu").tile
        assert tiles[name].replace("`group_size`", "128") == f"{outputs} x {inputs}"
    assert "1 + 4 / inputs" in rows[names.index("int8")][3]
    packed = make_scheme(DrafterSettings(scheme="int8"), "cpu").pack(torch.randn(64, 256), None)
    assert packed.num_bytes == 64 * 256 * (1 + 4 / 256)
    assert "0.5 + 4 / `group_size`" in rows[names.index("int4")][3]
    for group_size in (32, 64, 128):
        packed = make_scheme(DrafterSettings(scheme="int4", group_size=group_size), "cpu").pack(
            torch.randn(64, 256), None
        )
        assert packed.num_bytes == 64 * 256 * (0.5 + 4 / group_size)


def test_the_check_sees_lines_that_have_moved(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\n")
    diff = "--- a/a.py\n+++ b/a.py\n@@\n x = 1\n+z = 3\n"
    apply(diff, tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 1\nz = 3\ny = 2\n"
    with pytest.raises(AssertionError, match=r"does not have once"):
        apply(diff.replace(" x = 1", " x = 2"), tmp_path)
