"""Options that studies have in common."""

import argparse
from pathlib import Path

import pytest

from triptych.studies.options import FIRST_SEED, seeds_of, study_parser
from triptych.studies.remember.retention.retention_arms import world_of

DOC = "Is it so?\n\nMore of it."


def test_options_by_their_defaults():
    parser = study_parser(DOC, "so", ("smoke", "cpu"))
    assert parser.description == "Is it so?"
    assert vars(parser.parse_args([])) == {
        "preset": "smoke",
        "seeds": 3,
        "out": Path("runs/studies/so"),
        "workers": 2,
        "study": "so",
        "tracking_uri": None,
    }


def test_options_that_are_named():
    takes = ("data_dir", "bases", "split")
    parser = study_parser(DOC, "so", ("smoke", "cpu"), takes, num_seeds=None)
    words = ["--preset", "cpu", "--seeds", "4", "--split", "tuning", "--data_dir", "data"]
    assert vars(parser.parse_args(words)) == {
        "preset": "cpu",
        "seeds": 4,
        "data_dir": "data",
        "out": Path("runs/studies/so"),
        "bases": Path("runs/studies/retention/bases"),
        "split": "tuning",
        "study": "so",
        "tracking_uri": None,
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--workers", "1"])


@pytest.mark.parametrize(
    ("preset", "split", "seeds"),
    [
        ("cpu", "report", [1, 2, 3]),
        ("smoke", "report", [1]),
        ("cpu", "tuning", [100, 101, 102]),
        ("smoke", "tuning", [100]),
    ],
)
def test_seeds(preset, split, seeds):
    options = argparse.Namespace(preset=preset, seeds=3)
    assert seeds_of(options, FIRST_SEED[split]) == seeds


def test_a_world_is_small_in_smoke():
    options = argparse.Namespace(preset="smoke", data_dir=None)
    world = world_of(options, 4, 2)
    assert (world.split, world.base_steps, world.num_new) == ("report", 4, 2)
    assert (world.num_old, world.num_windows, world.brief) == (16, 8, True)
    options = argparse.Namespace(preset="cpu", data_dir="data")
    world = world_of(options, 1000, 140, "tuning")
    assert (world.data_dir, world.split) == ("data", "tuning")
    assert (world.num_old, world.num_windows, world.brief) == (400, 96, False)
