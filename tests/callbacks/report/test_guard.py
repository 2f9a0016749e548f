"""A picture that cannot be drawn costs the picture, not the run."""

import json

import numpy as np
import pytest

from triptych.callbacks.diversify.molecules.chemical_space import principal_plane
from triptych.callbacks.run.learning_curves import LearningCurves
from triptych.callbacks.run.module_figures import ModuleFigures
from triptych.cli import main

FEW = ["Oc1ccccc1", "Nc1ncccn1", "Nc1ccncn1", "Cc1ncccn1", "Nc1ncccn1", "Oc1ncccn1", "NN", "CC"]


@pytest.mark.learning_curves
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("callback", [LearningCurves, ModuleFigures])
def test_a_report_that_fails_is_a_warning_after_checkpoint_and_export(
    tiny, workdir, monkeypatch, capfd, callback
):
    def broken(*_):
        raise np.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(f"{callback.__module__}.num_dry_run_batches", broken)
    words = tiny()
    with pytest.warns(UserWarning, match=rf"report of {callback.__name__} is left out \(LinAlg"):
        run = main(words)
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "export").is_dir()


@pytest.mark.parametrize("count", range(2, len(FEW) + 1))
def test_a_few_molecules_have_a_map(count):
    places, shares = principal_plane(FEW[:count])
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    assert np.isfinite(shares).all()
    assert 0 <= shares[1] <= shares[0] <= 1 + 1e-9
    # The variance on the axes is the share of all the variance.
    variance = places.var(axis=0)
    if shares[1] > 1e-6:
        np.testing.assert_allclose(variance[1] / variance[0], shares[1] / shares[0], rtol=1e-6)


def test_equal_molecules_have_a_map():
    places, shares = principal_plane(["CCO"] * 4)
    assert np.allclose(places, 0)
    assert np.allclose(shares, 0)
