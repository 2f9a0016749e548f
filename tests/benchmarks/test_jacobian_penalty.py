"""The benchmark of Jacobian penalties in small, and that its sides compute what they are called."""

import json

import pytest
import torch

from triptych.benchmarks import jacobian_penalty
from triptych.benchmarks.jacobian_penalty import (
    BLOCKS,
    CLOSED,
    COLUMNS,
    FORWARD,
    PEER,
    PROBES,
    PenaltySides,
)

CPU = torch.device("cpu")


def test_exact_sides_have_the_peers_value_and_gradient():
    sides = PenaltySides(4, 3, CPU)
    assert sides.state_sizes == [16, 16, 16]
    expected = sides.peer().run()
    grads = [parameter.grad.clone() for parameter in sides.decoder.parameters() if
             parameter.grad is not None]  # fmt: skip
    assert len(grads) == 3  # the last bias has no part in it
    for name in (CLOSED, FORWARD):
        side = sides.ours(name)
        side.release()
        assert all(parameter.grad is None for parameter in sides.decoder.parameters())
        torch.testing.assert_close(side.run(), expected)
        found = [p.grad for p in sides.decoder.parameters() if p.grad is not None]
        for mine, theirs in zip(found, grads, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_sampled_sides_are_near_the_peer_on_average():
    sides = PenaltySides(40, 2, CPU)
    expected = sides.peer().run().item()
    mean = sum(sides.ours(COLUMNS).run().item() for _ in range(30)) / 30
    assert mean == pytest.approx(expected, rel=0.02)
    assert sides.ours(BLOCKS).run().item() == pytest.approx(expected, rel=1e-4)  # all of it
    assert 0 < sides.ours(PROBES).run().item() < expected


@pytest.mark.slow
def test_a_small_report_has_everything(tmp_path):
    out = tmp_path / "report.json"
    jacobian_penalty.main(
        ["--quick", "--num-latents", "2", "4", "--out", str(out), "--device", "cpu"]
    )
    stored = json.loads(out.read_text())
    assert {row["size"] for row in stored["rows"]} == {24, 48}
    assert f"{PEER} over {CLOSED}, batch 8@24" in stored["ratios"]
    assert len(stored["checks"]) == 4 + 3 + 4
    assert stored["checks"][f"{PEER} over {CLOSED}, batch 8@24"]["bound"] == 10.0
    # One latent: nine times the operations are all that can be saved.
    assert f"{PEER} over {CLOSED}, batch 1@24" in stored["ratios"]
    assert f"{PEER} over {CLOSED}, batch 1@24" not in stored["checks"]
    assert stored["checks"][f"peak bytes of {PROBES}, batch 1@48"]["bound"] == 4 * 2**30
    assert stored["checks"][f"{PEER} over {COLUMNS}, batch 1@24"]["bound"] == 10.0
    assert len({(row["name"], row["size"]) for row in stored["rows"]}) == len(stored["rows"])
