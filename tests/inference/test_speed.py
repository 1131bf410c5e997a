"""Timing in turns: what a clock of our own says must come, and a network of ours beside ResNet-50."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from imaginet_hub.errors import UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.speed import alternate, measure_speed, median_interval
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification


class Clock:
    """Calls take as long as they say, on a machine that may become slower."""

    def __init__(self, slower: float = 1.0) -> None:
        self.now, self.slower, self.calls = 0.0, slower, list[str]()

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Any:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds * (self.slower if self.now > 10 else 1)

        return call


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_turns_share_what_the_machine_does(slower: float) -> None:
    clock = Clock(slower)
    turns = alternate(clock.work("a", 2.0), clock.work("b", 0.5), seconds=150, clock=clock)
    ratios = [second / first for first, second in turns]
    # The one turn in which the machine changes is off; no median and no interval sees it.
    assert median_interval(ratios) == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert 10 <= len(turns) <= 40 and clock.now < 180
    a, b = clock.calls.count("a"), clock.calls.count("b")
    assert b - 2 == 4 * (a - 2)  # turns as long as each other; one call each prepares, one says how long it takes
    assert "".join(clock.calls[4:24]) == "abbbbbbbbaabbbbbbbba"  # who begins changes


def test_slow_networks_have_six_turns_all_the_same() -> None:
    clock = Clock()
    assert len(alternate(clock.work("a", 100.0), clock.work("b", 100.0), seconds=1, clock=clock)) == 6


def test_quick_ones_have_forty() -> None:
    clock = Clock()
    assert len(alternate(clock.work("a", 1e-3), clock.work("b", 1e-3), seconds=1000, clock=clock)) == 40


@pytest.mark.parametrize("n", [6, 7, 12, 40])
def test_the_interval_holds_the_median_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).exponential(size=(4000, n))
    found = [median_interval(list(row)) for row in draws]
    held = np.mean([f["low"] <= math.log(2) <= f["high"] for f in found])  # type: ignore[operator]
    assert 0.94 <= held <= 0.99
    assert found[0]["value"] == pytest.approx(np.median(draws[0]))


def test_too_few_turns_have_no_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == {"value": 2.0, "low": None, "high": None}


def test_a_network_is_timed() -> None:
    torch.manual_seed(0)
    config = SelfConResNetConfig(
        backbone="test_resnet", exit_stages=(), stem_stride=2, track="detection", id2label={0: "real", 1: "synthetic"}
    )
    detector = Detector(SelfConResNetForImageClassification(config), SelfConImageProcessor(crop_size=32), device="cpu")
    found = measure_speed(detector, batch_size=2, seconds=1.0)
    assert found["crop_size"] == 32 and found["yardstick"]["crop_size"] == 224
    assert found["device"] and found["threads"] == torch.get_num_threads() and found["dtype"] == "float32"
    assert found["turns"] >= 6 and 1 <= found["batch_size"] <= 2
    # A few thousand weights on 32 pixels against 25 million on 224, whatever else the machine does.
    assert found["ratio"]["low"] > 2 and found["images_per_second"] > found["yardstick"]["images_per_second"]
    with pytest.raises(UsageError, match="batch_size"):
        measure_speed(detector, batch_size=0)
