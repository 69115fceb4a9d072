"""A drafter that is the policy itself, in whole or in part, is refused or said so."""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from efficient_rollout.config import DrafterSettings
from efficient_rollout.engine.link_report import LinkedLayer, LinkReport, require_quantized
from efficient_rollout.errors import SchemeUnavailableError

INT4 = DrafterSettings(scheme="int4")


def report(*unquantized: str, shape: tuple[int, int] = (64, 96)) -> LinkReport:
    """Three layers and a head of four times their size."""
    shapes = dict.fromkeys(("qkv", "up", "down"), shape) | {"head": (4 * shape[0], shape[1])}
    return LinkReport(
        tuple(LinkedLayer(name, shape, name not in unquantized, name == "head") for name, shape in shapes.items())
    )


def test_counts_are_of_layers_and_the_share_is_of_weights():
    linked = report("up", "down")
    assert (linked.num_packed, linked.num_unquantized) == (2, 2)
    assert linked.packed_weight_share == 5 / 7


@pytest.mark.parametrize(
    ("unquantized", "settings"),
    [
        ((), INT4),
        (("head",), DrafterSettings(scheme="int4", quantize_output_head=False)),
        (("qkv", "up", "down", "head"), DrafterSettings(scheme="unquantized")),
    ],
    ids=["all", "but-the-head-by-choice", "none-by-choice"],
)
def test_a_drafter_that_is_what_was_asked_for_is_not_mentioned(unquantized, settings, caplog):
    require_quantized(report(*unquantized), settings, torch.float16)
    assert caplog.text == ""


def test_a_part_left_out_is_said_with_its_share_and_names(caplog):
    require_quantized(report("up", "head"), INT4, torch.float16)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "drafter.scheme=int4 quantizes only 29 % of the weights" in record.message
    assert "2 of 4 layers" in record.message
    assert "up (64 x 96), head (256 x 96)" in record.message


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((64, 24), INT4, r"takes no layer.*64 x 24, 256 x 24, in float16.*int4 with drafter.group_size=32"),
        ((64, 96), INT4, r"quantized no layer.*qkv \(64 x 96\).*cannot see their weights.*enabled=false"),
        (
            (64, 96),
            DrafterSettings(scheme="int4", quantize_output_head=False),
            r"quantized no layer of this policy \(qkv \(64 x 96\), up \(64 x 96\), down \(64 x 96\)\)",
        ),
    ],
    ids=["too-narrow", "hidden-from-the-taps", "without-the-head"],
)
def test_a_drafter_of_which_nothing_is_quantized_is_refused(shape, settings, message):
    everything = report("qkv", "up", "down", "head", shape=shape)
    with pytest.raises(SchemeUnavailableError, match=message):
        require_quantized(everything, settings, torch.float16)
