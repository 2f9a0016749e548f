"""The names and the choice of the parameters that trackers get."""

import yaml

from tests.tiny_lightning import TinyModule
from triptych import ROOT
from triptych.callbacks.tracking.run_parameters import run_parameters

TINY = f"{TinyModule.__module__}.TinyModule"


def test_what_differs_from_the_defaults_under_short_names():
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": TINY,
            "init_args": {"learning_rate": 7.5, "nan_at_step": None},
        },
        "trainer": {"max_steps": 10, "precision": None},
        "run_dir": "here",
        "tracking": {"uri": "sqlite:///mlflow.db"},
    }
    assert run_parameters(config, {"trainer": {"max_steps": -1, "precision": None}}) == {
        "seed": "3",
        "model": "TinyModule",
        "model.learning_rate": "7.5",
        "trainer.max_steps": "10",
    }


def test_items_of_lists_are_named_after_their_classes():
    default = {"class_path": "a.Given"}
    one = {"class_path": "a.Mine", "init_args": {"size": 1}}
    two = {"class_path": "b.Yours", "init_args": {"size": 2}}
    config = {"trainer": {"callbacks": [default, one, two]}}
    assert run_parameters(config, {"trainer": {"callbacks": [default]}}) == {
        "callbacks.Mine": "Mine",
        "callbacks.Mine.size": "1",
        "callbacks.Yours": "Yours",
        "callbacks.Yours.size": "2",
    }
    same = {"model": {"class_path": "a.Sum", "init_args": {"parts": [one, one]}}}
    assert "model.parts.1.size" in run_parameters(same, {})


def test_names_that_would_clash_stay_long():
    clash = {"a": {"init_args": {"b": 1}, "b": 2}}
    assert run_parameters(clash, {}) == {"a.init_args.b": "1", "a.b": "2"}


def test_quickstart_has_more_than_twenty():
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    found = run_parameters(config, {})
    assert len(found) > 20
    assert found["model.memory.num_keys"] == "64"
    assert found["data"] == "TextAndFacts"
