"""The figure of a run."""

import pytest

from triptych.callbacks.run.learning_curves import chosen_panels, draw_curves, read_curves
from triptych.cli import main

CSV = """epoch,step,train/loss_nats,val/text/loss_nats,val/facts/exact_match,val/text/alarms
,0,,4.0,,
0,0,3.0,,,
0,1,2.0,2.5,0.25,7.0
0,3999,1.0,1.5,0.75,7.0
"""


@pytest.fixture
def curves(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    return read_curves(path)


def test_rows_of_today_have_completed_steps(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,time,train/loss_nats\n0,10,1796052925.07,3.0\n")
    assert read_curves(path) == {"train/loss_nats": ([10], [3.0])}


def test_curves_of_an_old_file_stand_over_completed_steps(curves):
    assert curves["train/loss_nats"] == ([1, 2, 4000], [3.0, 2.0, 1.0])
    assert curves["val/text/loss_nats"] == ([0, 2, 4000], [4.0, 2.5, 1.5]), "0: before training"


def test_the_promised_number_comes_first_and_what_never_changes_is_left_out(curves):
    assert chosen_panels(curves) == {
        "validation": ["exact_match", "loss_nats"],
        "training": ["loss_nats"],
    }
    assert chosen_panels(curves, most_panels=1)["validation"] == ["exact_match"]
    assert chosen_panels(curves, ["loss_nats"]) == {
        "validation": ["loss_nats"],
        "training": ["loss_nats"],
    }


def test_validation_stands_apart_from_training_with_names_and_units(curves):
    figure = draw_curves(curves, chosen_panels(curves))
    figure.draw_without_rendering()
    exact, loss, training = (axis for axis in figure.axes if axis.lines)
    assert (exact.get_title(loc="left"), exact.get_ylabel()) == ("facts answered exactly", "share")
    assert (loss.get_title(loc="left"), loss.get_ylabel()) == ("text: loss", "nats")
    assert [len(axis.lines) for axis in (exact, loss, training)] == [1, 1, 1]
    assert "3,000" in [tick.get_text() for tick in training.get_xticklabels()]


@pytest.mark.learning_curves
def test_a_run_leaves_its_figure(tiny):
    curves = {"class_path": "triptych.callbacks.run.learning_curves.LearningCurves"}
    run = main(tiny("--trainer.callbacks+", curves["class_path"]))
    assert (run / "figures" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
