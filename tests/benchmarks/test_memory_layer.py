"""The benchmark of the memory layer in small, and that its peer computes the same function."""

import json

import pytest
import torch

from triptych.benchmarks import memory_layer
from triptych.benchmarks.memory_layer_sides import PEER, LayerSides, LayerSizes
from triptych.benchmarks.paired import PairedTimer
from triptych.benchmarks.report import Report

TINY = LayerSizes(num_keys=16, num_tokens=48, width=12, num_heads=2, top_k=4, half_dim=6)
CPU = torch.device("cpu")


def test_the_peer_computes_the_same_function_and_gradients():
    sides = LayerSides(TINY, CPU)
    ours, peer = sides.ours(sides.x_BM), sides.peer(sides.x_BM.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(ours, peer)
    sides.table.set_gradient("dense")
    (grad_ours,) = torch.autograd.grad(ours, sides.x_BM, sides.grad_BM, retain_graph=True)
    (grad_peer,) = torch.autograd.grad(peer, sides.x_BM, sides.grad_BM, retain_graph=True)
    torch.testing.assert_close(grad_ours, grad_peer, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(out, weight, sides.grad_BM)[0]
            for out, weight in ((ours, sides.table.weight), (peer, sides.peer.values.weight))
        )
    )


def test_a_run_leaves_nothing_behind():
    sides = LayerSides(TINY, CPU)
    for side in sides.layer_backward() + sides.gather_backward():
        side.run()
        side.release()
        assert sides.table.gradient == "selected_rows"
        assert sides.table.reads == []
        modules = (sides.ours, sides.table, sides.peer, sides.ffn, sides.bag, sides.sparse_bag)
        leaves = [p for module in modules for p in module.parameters()]
        assert all(leaf.grad is None for leaf in (*leaves, sides.x_BM, sides.weights_BK))


def test_checks_compare_with_all_slots_and_with_the_peer():
    sides = LayerSides(TINY, CPU)
    ids, scores = memory_layer.brute_force(sides, num_queries=16)
    assert (ids.value, scores.value) == (1.0, 1.0)
    assert memory_layer.agreement(sides).held


@pytest.mark.slow
def test_a_small_report_has_everything(tmp_path):
    more = {"copy_gb_per_s": 10.0, "breakdown": [], "bandwidth": []}
    report = Report("memory_layer", {"type": "cpu"}, more=more)
    with PairedTimer(CPU, 2, 2, 0.0) as timer:
        memory_layer.compare(report, timer, TINY)
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert f"{PEER} forward+backward@256" in stored["ratios"]
    assert len(stored["rows"]) == 3 + 4 + 2 + 4
    assert len(stored["checks"]) == 4
    assert sum(part["share"] for part in stored["breakdown"]) == pytest.approx(1.0)
    names = {part["part"] for part in stored["breakdown"]}
    assert {"scores", "half top-k", "candidates", "gather"} <= names
    # Forward: 48 tokens x 2 heads x 4 slots, rows of 12 floats, id and weight; 48 outputs.
    assert stored["bandwidth"][0]["bytes"] == 384 * (48 + 8 + 4) + 48 * 48
