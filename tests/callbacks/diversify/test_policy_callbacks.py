"""What is seen of a policy's training: anchors, modes, the front, and a stop on collapse."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from tests.lit_modules.diversify.tiny_prompts import TinyPrompts, module, trainer
from tests.tiny_lightning import TinyModule
from triptych.callbacks.diversify.anchor_trace import AnchorTrace
from triptych.callbacks.diversify.mode_coverage_figure import ModeCoverageFigure, draw_coverage
from triptych.callbacks.diversify.molecules.molecule_report import MoleculeReport
from triptych.callbacks.diversify.molecules.stop_search import StopSearch
from triptych.callbacks.diversify.reward_diversity_front import RewardDiversityFront, front
from triptych.callbacks.diversify.stop_on_collapse import StopOnCollapse
from triptych.objectives.diversify.mara import Mara

STEPS = 6


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run with everything that looks at it."""
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    folder = tmp_path_factory.mktemp("seen")
    callbacks = AnchorTrace(), ModeCoverageFigure(), RewardDiversityFront()
    made = module(mara=Mara(threshold=0.5), num_samples=4, eval_samples=32)
    run = trainer(folder, *callbacks, max_steps=STEPS, limit_val_batches=1.0, val_check_interval=2)
    run.fit(made, TinyPrompts())
    return folder, made, callbacks


def anchors(folder: Path) -> list[dict[str, str]]:
    with (folder / "anchors.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_trace_names_the_anchor_of_every_prompt(seen):
    folder, _, (trace, *_) = seen
    rows = anchors(folder)
    assert 10 <= len(rows) <= 2 * STEPS  # two prompts a step, nearly all with a good answer
    log_prob = {"1": math.log(0.55), "2": math.log(0.25)}
    for row in rows:
        assert float(row["reference_log_prob_nats"]) == pytest.approx(
            log_prob[row["anchor"]], abs=1e-4
        )
        assert float(row["anchor_reward"]) == 1
        assert float(row["reward_difference"]) == 0  # all good answers earn the same
        assert 1 <= int(row["num_above"]) <= 4
    # An anchor changed where it is another than at the prompt's last visit, and nowhere else.
    last: dict[str, str] = {}
    for row in rows:
        changed = row["prompt"] in last and last[row["prompt"]] != row["anchor"]
        assert row["changed"] == str(changed)
        last[row["prompt"]] = row["anchor"]
    assert (folder / "figures" / "anchors.png").stat().st_size > 1000
    ((_, told),) = trace.summary_rows()
    again = len(rows) - len({row["prompt"] for row in rows})
    assert told.startswith(f"{sum(r['changed'] == 'True' for r in rows)} of {again} ")


def test_a_trace_goes_on_where_it_stopped(seen):
    _, _, (trace, *_) = seen
    other = AnchorTrace()
    other.load_state_dict(trace.state_dict())
    assert other.summary_rows() == trace.summary_rows()
    assert other.curve == trace.curve


def test_modes_and_front_are_drawn_with_the_start_in_them(seen):
    folder, made, (_, coverage, path) = seen
    assert [step for step, _ in coverage.history] == [0, 2, 4, 6]
    for _, counts in coverage.history:
        assert sum(counts["held_out"]["one"].values()) == 2 * 32
    assert list(coverage.history[0][1]["held_out"]["one"]) == ["1", "2", "(none of them)"]
    points = path.paths["held_out"]
    assert [point[0] for point in points] == [0, 2, 4, 6]
    assert points[0][1] == pytest.approx(made.start_numbers["val/held_out/reward"])
    assert points[0][2] == pytest.approx(made.start_numbers["val/held_out/mode_entropy_bits"])
    for name in ("mode_coverage", "reward_diversity_front"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000


def test_many_categories_are_drawn_by_rank():
    counts = {"fruit": {"apple": 6, "pear": 2}, "tree": {"oak": 1, "ash": 3}}
    figure = draw_coverage([(0, {"held": counts}), (5, {"held": counts})])
    (axis,) = figure.axes
    lines = axis.get_lines()
    assert [line.get_label() for line in lines] == ["before training", "after 5 steps"]
    assert list(lines[0].get_ydata()) == [0.75, 0.25]


def test_the_front_has_what_nothing_beats():
    points = [(0, 0.5, 0.9), (1, 0.9, 0.9), (2, 0.95, 0.2), (3, 0.9, 0.9)]
    assert front(points) == [(1, 0.9, 0.9), (2, 0.95, 0.2), (3, 0.9, 0.9)]


@pytest.mark.parametrize("every", ["step", "validation"])
def test_a_collapse_stops_the_run_and_says_why(tmp_path, every):
    seed_everything(1, verbose=False)
    name = "train/distinct_share" if every == "step" else "val/held_out/distinct_right_answers"
    stop = StopOnCollapse(name, below=99.0, patience=3, every=every)
    run = trainer(
        tmp_path, stop, max_steps=9, limit_val_batches=1.0, val_check_interval=1
    )  # fmt: skip
    with pytest.warns(UserWarning, match=rf"stopped: {name} was below 99 in 3 .* in a row"):
        run.fit(module(evaluate_first=False), TinyPrompts())
    assert run.global_step == 3
    assert stop.summary_rows() == [("stopped early", stop.reason)]


def test_a_healthy_run_goes_on(tmp_path):
    stop = StopOnCollapse(below=0.0, patience=1)
    run = trainer(tmp_path, stop, max_steps=3)
    run.fit(module(evaluate_first=False), TinyPrompts())
    assert run.global_step == 3
    assert not stop.summary_rows()


def test_only_a_row_of_looks_counts(tmp_path):
    """Patience begins again once the number is back above its bound."""
    stop = StopOnCollapse("x", below=0.5, patience=2)

    run = SimpleNamespace(
        should_stop=False, global_step=0, callback_metrics={}, lightning_module=None
    )
    for value in (0.1, 0.9, 0.1):
        run.callback_metrics = {"x": value}
        stop._look(run)
    assert not run.should_stop
    other = StopOnCollapse("x", below=0.5, patience=2)
    other.load_state_dict(stop.state_dict())
    with pytest.warns(UserWarning, match="x was below"):
        other._look(run)
    assert run.should_stop


def test_a_number_that_nothing_logs_is_an_error(tmp_path):
    stop = StopOnCollapse("train/entropie")
    with pytest.raises(ValueError, match=r"which nothing logs; there is .*train/entropy_nats"):
        trainer(tmp_path, stop).fit(module(evaluate_first=False), TinyPrompts())


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (AnchorTrace(), r"protocols\.HasExperience, but TinyModule has no `experience`"),
        (ModeCoverageFigure(), r"protocols\.CountsModes, but TinyModule has no `mode_counts`"),
        (MoleculeReport(), "MoleculeReport reads the ledger of an oracle"),
        (StopSearch(), "StopSearch reads the ledger of an oracle"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_module_without_the_protocol_is_refused(callback, message):
    with pytest.raises(ValueError, match=message):
        callback.on_fit_start(Trainer(accelerator="cpu", logger=False), TinyModule(vocab_size=3))
