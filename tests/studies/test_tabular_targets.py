"""The tabular study, from its command to its files."""

import json

import pytest

from triptych.studies.tabular_targets import PRESETS, main


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabular")
    main(["--preset", "smoke", "--seeds", "3", "--out", str(folder)])
    return folder


def test_exact_runs_reach_every_closed_form(out):
    results = json.loads((out / "results.json").read_text())
    # 5 objectives x 3 arms, at 1 beta on two tasks and at 7 on the third
    assert len(results["exact"]) == 5 * 3 * (1 + 1 + 7)
    assert max(run["largest_error"] for run in results["exact"]) < 1e-6


def test_what_does_not_need_long_runs_holds(out):
    checks = json.loads((out / "results.json").read_text())["checks"]
    quick = {
        name: check["held"]
        for name, check in checks.items()
        if name.startswith(("exact", "diagnosis", "two modes", "fifteen", "GRPO, k1"))
    }
    assert len(quick) == 5 + 2 + 3 + 1 + 3
    assert all(quick.values()), quick
    assert checks["std and k3 in loss, MARA: entropy (collapsed)"]["value"] < 0.2


def test_findings_and_figure(out):
    findings = json.loads((out / "results.json").read_text())["findings"]
    assert "collapse" in findings["GRPO, k3 in loss, MARA, algorithm 1"][-1]
    assert findings["RLOO, k1 in reward, MARA, algorithm 1"] == []
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_gated_presets_have_enough_seeds():
    assert all(PRESETS[name].num_seeds >= 32 for name in ("cpu", "full"))
