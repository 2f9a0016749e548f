"""Restricted numbers of the parser never reach an object, nor its checkpoint."""

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import Callback

from triptych.cli import main

SEEN = {}


class Keeps(Callback):
    def __init__(self, number: PositiveInt, numbers: tuple[PositiveFloat, ...] = ()) -> None:
        SEEN["all"] = [number, *numbers]


def test_objects_get_plain_numbers(tiny):
    init_args = {"number": 3, "numbers": [0.5, 2.0]}
    keeps = {"class_path": f"{__name__}.Keeps", "init_args": init_args}
    main(tiny(trainer={"callbacks+": [keeps], "fast_dev_run": True}))
    assert SEEN["all"] == [3, 0.5, 2.0]
    assert [type(number) for number in SEEN["all"]] == [int, float, float]
