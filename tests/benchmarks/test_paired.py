"""The timing harness: turns, quantiles, ratios and memory."""

import torch

from triptych.benchmarks.paired import PairedTimer, Side, Timing, peak_bytes, seconds_of, time_ratio

CPU = torch.device("cpu")


def test_sides_take_turns_and_are_released_after_each_run():
    calls = []
    sides = [
        Side(name, lambda n=name: calls.append(n), lambda n=name: calls.append(f"-{n}"))
        for name in "AB"
    ]
    with PairedTimer(CPU, min_rounds=2, max_rounds=2, budget_s=0.0) as timer:
        timings = timer.compare("turns", 5, sides)
    assert calls == ["A", "-A", "B", "-B"] * 3  # once to warm up
    assert [(timing.name, timing.size, len(timing.seconds)) for timing in timings] == [
        ("A", 5, 2),
        ("B", 5, 2),
    ]


def test_rounds_end_with_the_budget():
    sides = [Side("A", lambda: None)]
    with PairedTimer(CPU, min_rounds=3, max_rounds=9, budget_s=0.0) as timer:
        assert len(timer.compare("spent", 1, sides)[0].seconds) == 3
    with PairedTimer(CPU, min_rounds=3, max_rounds=9, budget_s=60.0) as timer:
        assert len(timer.compare("not spent", 1, sides)[0].seconds) == 9


def test_row_by_hand():
    row = Timing("A", 4, [3.0, 1.0, 2.0], 16).row()
    assert row == {
        "name": "A",
        "size": 4,
        "median_s": 2.0,
        "p10_s": 1.2,
        "p90_s": 2.8,
        "min_s": 1.0,
        "num_runs": 3,
        "peak_bytes": 16,
    }


def test_ratio_is_the_median_of_the_rounds_ratios():
    # 4/1, 3/3, 8/4: 4, 1, 2.
    peer, ours = Timing("P", 1, [4.0, 3.0, 8.0], 0), Timing("O", 1, [1.0, 3.0, 4.0], 0)
    assert time_ratio(peer, ours) == 2.0


def test_peak_counts_what_is_held_at_once():
    def run() -> None:
        first = torch.ones(1000)
        del first
        second = torch.ones(2000)
        third = torch.ones(500)
        del second, third

    held = 4 * (2000 + 500)
    assert held <= peak_bytes(run, CPU) < held + 4 * 1000


def test_what_a_run_returns_is_freed_after_the_clock_stops():
    assert seconds_of(lambda: torch.ones(10), CPU) > 0
