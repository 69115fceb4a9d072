"""What a refresh reports: on a GPU, seconds of its device, which goes on while the host only launches."""

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter import packed_weights
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.drafter.stopwatch import Stopwatch


class DeviceEvent:
    """An event of a device that takes two seconds between any two of them, and is waited for."""

    count = 0
    num_waits = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        """Behind everything that was launched."""
        DeviceEvent.count += 1
        self.place = DeviceEvent.count

    def synchronize(self) -> None:
        """Wait."""
        DeviceEvent.num_waits += 1

    def elapsed_time(self, end: "DeviceEvent") -> float:
        """In milliseconds."""
        return 2000.0 * (end.place - self.place)


def test_seconds_are_the_device_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", DeviceEvent)
    monkeypatch.setattr(packed_weights, "Stopwatch", lambda _: Stopwatch(torch.device("cuda")))
    packed = PackedWeights(make_scheme(DrafterSettings(scheme="int4"), "cpu"), quantize_output_head=True)
    for name in "ab":
        packed.refresh(name, torch.randn(64, 64), None)
    assert DeviceEvent.num_waits == 0, "a load does not wait for the device"
    assert packed.take_report() == (4.0, None)
    assert packed.take_report() == (0.0, None)


def test_a_refresh_that_fails_is_a_fault_and_said_once():
    packed = PackedWeights(make_scheme(DrafterSettings(scheme="int4"), "cpu"), quantize_output_head=True)
    packed.refresh("a", torch.randn(64, 64), None)
    packed.refresh("a", torch.randn(128, 64), None)
    assert "quantizing a failed: ValueError" in packed.take_report()[1]
    assert packed.take_report()[1] is None
