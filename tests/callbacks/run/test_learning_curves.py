"""The figure of a run."""

import pytest

from triptych.callbacks.run.learning_curves import draw_curves, read_curves
from triptych.cli import main

CSV = """step,train/loss_nats,val/text/loss_nats,val/facts/f1
1,3.0,,
2,2.0,2.5,0.25
4,1.0,1.5,0.75
"""


def test_curves_are_read_by_key(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    assert read_curves(path) == {
        "train/loss_nats": ([1, 2, 4], [3.0, 2.0, 1.0]),
        "val/text/loss_nats": ([2, 4], [2.5, 1.5]),
        "val/facts/f1": ([2, 4], [0.25, 0.75]),
    }


def test_training_and_validation_share_the_panel_of_a_quantity(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    figure = draw_curves(read_curves(path), ["loss_nats", "f1"])
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["train", "text"]
    assert list(second.lines[0].get_ydata()) == [0.25, 0.75]


@pytest.mark.learning_curves
def test_a_run_leaves_its_figure(tiny):
    curves = {"class_path": "triptych.callbacks.run.learning_curves.LearningCurves"}
    run = main(tiny("--trainer.callbacks+", curves["class_path"]))
    assert (run / "figures" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
