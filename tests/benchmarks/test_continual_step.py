"""The benchmark of a finetuning step in small, and that its sides do what they are called."""

import json

import pytest
import torch
from torch import Tensor

from triptych.benchmarks import continual_step
from triptych.benchmarks.continual_step_sides import DENSE, FUSED, MASKING, StepSides, StepSizes
from triptych.benchmarks.paired import PairedTimer, Side, Timing
from triptych.benchmarks.report import Report

CPU = torch.device("cpu")
SMALL = {"num_rows": 3, "row_length": 5, "num_heads": 2, "top_k": 4, "width": 16}
TINY = StepSizes(num_keys=16, num_selected=20, num_layers=2, **SMALL)


def moved(sides: StepSides, side: Side) -> tuple[Tensor, list[int]]:
    """What a run adds to the table, and to which rows."""
    before = sides.table.weight.detach().clone()
    side.run()
    side.release()
    change = sides.table.weight.detach() - before
    return change, change.any(1).nonzero().flatten().tolist()


def test_the_masking_trick_learns_what_ours_learns():
    ours, theirs = (StepSides(TINY, CPU) for _ in range(2))
    change, rows = moved(ours, ours.table_step("sgd"))
    expected, expected_rows = moved(theirs, theirs.masked_table_step())
    assert len(rows) == 20
    assert rows == expected_rows == ours.rows_U.tolist()
    # Two roundings of values near 1/4, for changes of the order of the learning rate.
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-7)


def test_dense_adamw_moves_every_row_and_ours_only_those_selected():
    sides = StepSides(TINY, CPU)
    _, rows = moved(sides, sides.table_step("adamw"))
    assert rows == sides.rows_U.tolist()
    _, rows = moved(sides, sides.dense_table_step())
    assert rows == list(range(256))  # decay reaches rows that nothing read
    _, rows = moved(sides, sides.dense_table_step(FUSED))
    assert rows == list(range(256))
    _, rows = moved(sides, sides.dense_model_step())
    assert rows == list(range(256))
    _, rows = moved(sides, sides.model_step("adamw"))
    assert len(rows) == 20


def test_a_run_leaves_nothing_behind():
    sides = StepSides(TINY, CPU)
    for side in (
        sides.table_step("sgd"),
        sides.masked_table_step(),
        sides.dense_table_step(),
        sides.model_step("sgd"),
        sides.dense_model_step(),
    ):
        side.run()
        side.release()
        assert sides.table.gradient == "selected_rows"
        assert sides.table.reads == []
        assert not sides.table.weight.requires_grad
        leaves = [*sides.model.parameters(), *sides.dense.values(), sides.anchor]
        assert all(leaf.grad is None for leaf in leaves)


def test_state_is_counted_in_bytes():
    sides = StepSides(TINY, CPU)
    ours = [sides.table_step("adamw"), sides.table_step("sgd")]
    for side in (*ours, sides.dense_table_step(), sides.masked_table_step()):
        side.run()
        side.release()
    held = sides.state_bytes()
    # Two moments of 16 floats; step count, id and position of 8 bytes each; torch: one step count.
    assert held["selected rows, adamw"] == 20 * (2 * 16 * 4 + 24)
    assert held[DENSE] == 2 * 256 * 16 * 4 + 4
    assert held["selected rows, sgd"] == held[MASKING] == 0


@pytest.mark.slow
def test_a_small_report_has_everything(tmp_path):
    small, large = StepSides(TINY, CPU), StepSides(StepSizes(32, num_selected=20, **SMALL), CPU)
    report = Report("continual_step", {"type": "cpu"}, more={"state_bytes": {}, "breakdown": []})
    with PairedTimer(CPU, 2, 2, 0.0) as timer:
        continual_step.growth(report, timer, small, large)
        continual_step.compare(report, timer, small)
        continual_step.promise(report, large, continual_step.compare(report, timer, large))
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert {row["size"] for row in stored["rows"]} == {256, 1024}
    assert len(stored["rows"]) == 2 * (5 + 4)
    assert f"table: {MASKING}@1024" in stored["ratios"]
    assert f"whole model: {DENSE}@1024" in stored["ratios"]
    assert len(stored["checks"]) == 6
    assert len(stored["breakdown"]) == 2 * 6
    state = stored["checks"]["optimizer state, share of dense AdamW's@1024"]
    assert state["value"] == pytest.approx(20 * (2 * 16 * 4 + 24) / (2 * 1024 * 16 * 4 + 4))
    assert state["bound"] == 0.001


def test_peak_memory_is_that_of_ours_beside_the_table():
    sides = StepSides(TINY, CPU)
    state = {"16": 0, "selected rows, adamw": 1, DENSE: 1000}
    report = Report("continual_step", {}, more={"state_bytes": {"256": state}})
    ratios = {f"table: {MASKING}@256": 41.0, f"table: {DENSE}@256": 29.0}
    report.ratios |= ratios
    # The table has 256 x 16 x 4 = 16,384 bytes.
    ours = [Timing("a", 256, [1.0], 4096), Timing("b", 256, [1.0], 1024)]
    continual_step.promise(report, sides, ours)
    values = [(check.value, check.held) for check in report.checks.values()]
    assert values == [(41.0, True), (29.0, False), (0.001, True), (1.25, False)]
