"""Whole runs with probes: what is measured when, what is kept of it, and what stops a run."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from transformers import PreTrainedTokenizerFast

from tests.lit_modules.remember.test_memory_pretraining import TINY as PRETRAINING
from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from triptych.callbacks.remember.forgetting.forgetting_budget import ForgettingBudget
from triptych.callbacks.remember.forgetting.forgetting_evaluation import ForgettingEvaluation
from triptych.callbacks.remember.probes.base import Probe, ProbeSetting, Role
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.cli import main
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.sources.records import RecordSource
from triptych.models.remember.memory_lm import load_memory_lm

EMBEDDED = {"path": "embedded"}
PROBES = {
    "new": {
        "class_path": "triptych.callbacks.remember.probes.fact_recall.FactRecall",
        "init_args": {"wording": "statement", "first_visits": 2, "visits_per_group": 2},
    },
    "old": {
        "class_path": "triptych.callbacks.remember.probes.fact_recall.FactRecall",
        "init_args": {"facts": {"skip_facts": 6, "num_facts": 5}, "role": "retained"},
    },
    "asked": {
        "class_path": "triptych.callbacks.remember.probes.closed_book.ClosedBook",
        "init_args": {
            "source": EMBEDDED,
            "num_rows": 4,
            "scoring": "generate",
            "max_new_tokens": 3,
        },
    },
    "choices": {
        "class_path": "triptych.callbacks.remember.probes.multiple_choice.MultipleChoice",
        "init_args": {"source": EMBEDDED, "num_rows": 6},
    },
    "answers": {
        "class_path": "triptych.callbacks.remember.probes.answer_nll.AnswerNLL",
        "init_args": {"source": EMBEDDED, "num_rows": 6},
    },
    "text": {
        "class_path": "triptych.callbacks.remember.probes.text_perplexity.TextPerplexity",
        "init_args": {"context_length": 64, "num_windows": 8},
    },
}
TEXT = {"text": PROBES["text"]}
STREAM = {
    "class_path": "triptych.datamodules.remember.facts.fact_stream.FactStream",
    "init_args": {
        "facts": {"num_facts": 6, "validation_facts": 2},
        "context_length": 128,
        "steps_per_visit": 3,
    },
}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "log_every_n_steps": 7,
    "limit_val_batches": 0,
}


def callback(**options: Any) -> dict[str, Any]:
    name = "triptych.callbacks.remember.forgetting.forgetting_evaluation.ForgettingEvaluation"
    return {"class_path": name, "init_args": options}


class CopyCheckpoints(Callback):
    """Keeps the checkpoint of every step as `<step>.ckpt`."""

    def on_train_batch_start(self, trainer, *args):
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists():
            shutil.copy(last, last.with_name(f"{trainer.global_step}.ckpt"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, Any]:
    """A model that was taught running text, to be taught 18 steps more and to forget it."""
    arguments = {**PRETRAINING["model"]["init_args"], "learning_rate": 0.02, "schedule_steps": 60}
    del arguments["sample_prompts"]
    config = {
        **PRETRAINING,
        "model": {**PRETRAINING["model"], "init_args": arguments},
        "trainer": {**TRAINER, "max_epochs": -1, "max_steps": 40},
    }
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("base")
        patch.chdir(folder)
        (folder / "base.yaml").write_text(yaml.safe_dump(config))
        export = main(["fit", "--config", "base.yaml"]).absolute() / "export"
    further = {"init_from": str(export), "memory": None, "warmup_steps": 0, "schedule_steps": 100}
    return {**PRETRAINING["model"], "init_args": {**arguments, **further}}


@pytest.fixture
def fit(tiny, model) -> Callable[..., Path]:
    """Runs 18 steps, three for each of six facts; the arguments are the callback's."""

    def run(*words: object, trainer: dict | None = None, data: dict | None = None, **options: Any):
        settings = {**TRAINER, "callbacks+": [callback(**options)] if options else []}
        settings |= trainer or {}
        return main(tiny(*words, model=model, data=data or STREAM, trainer=settings))

    return run


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "forgetting.json").read_text())


def values(run: Path, probe: str, metric: str) -> dict[int, float]:
    rows = report(run)["rows"]
    return {r["step"]: r["value"] for r in rows if (r["probe"], r["metric"]) == (probe, metric)}


def measured_at(run: Path) -> list[tuple[int, int | None]]:
    return list(dict.fromkeys((row["step"], row["visit"]) for row in report(run)["rows"]))


def text_nll(run: Path) -> dict[int, float]:
    return values(run, "text", "nll_nats_per_token")


# -- what a run leaves behind ---------------------------------------------------------------------


OFTEN = {"probes": PROBES, "every_n_visits": 2, "every_n_steps": 5}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, model) -> Path:
    """A run with every probe, tracked by MLflow; its checkpoints of all steps are kept."""
    copies = {"class_path": f"{__name__}.CopyCheckpoints"}
    config = {
        "model": model,
        "data": STREAM,
        "trainer": {**TRAINER, "callbacks+": [callback(**OFTEN), copies]},
        "checkpoint": {"every_n_train_steps": 1},
        "tracking": {"uri": "sqlite:///mlflow.db"},
    }
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.chdir(folder)
        (folder / "whole.yaml").write_text(yaml.safe_dump(config))
        return main(["fit", "--config", "whole.yaml"]).absolute()


def test_it_measures_at_the_start_every_so_often_and_at_the_end(whole_run):
    assert measured_at(whole_run) == [
        (0, 0),
        (5, 2),  # within the second visit
        (6, 2),  # after it
        (10, 4),
        (12, 4),
        (15, 5),
        (18, 6),
    ]


def test_rows_are_whole_and_changes_are_against_the_start(whole_run):
    content = report(whole_run)
    assert set(content["rows"][0]) == {"step", "visit", "probe", "metric", "value", "change"}
    starts = {}
    for row in content["rows"]:
        start = starts.setdefault((row["probe"], row["metric"]), row["value"])
        assert row["change"] == pytest.approx(row["value"] - start)
    assert set(starts) == {
        ("new", "exact_match"),
        ("new", "first_2_visits_exact_match"),
        ("new", "visits_1_to_2_exact_match"),
        ("new", "visits_3_to_4_exact_match"),
        ("new", "visits_5_to_6_exact_match"),
        ("new", "answer_nll_nats_per_token"),
        ("old", "exact_match"),
        ("old", "answer_nll_nats_per_token"),
        ("asked", "exact_match"),
        ("asked", "f1"),
        ("choices", "accuracy"),
        ("choices", "length_normalized_accuracy"),
        ("choices", "right_nll_nats_per_token"),
        ("answers", "nll_nats_per_token"),
        ("answers", "bits_per_byte"),
        ("text", "nll_nats_per_token"),
        ("text", "bits_per_byte"),
        ("text", "perplexity"),
    }
    assert content["probes"]["old"]["num_rows"] == 5
    assert content["probes"]["new"]["role"] == "learned"
    assert content["stopped"] is None
    nll = values(whole_run, "new", "answer_nll_nats_per_token")
    assert nll[18] < nll[0] - 0.5  # it learns


def test_final_values_are_in_the_summary(whole_run):
    metrics = json.loads((whole_run / "summary.json").read_text())["metrics"]
    rows = report(whole_run)["rows"]
    for row in [row for row in rows if row["step"] == 18]:
        name = f"forgetting/{row['probe']}/{row['metric']}"
        assert metrics[name] == pytest.approx(row["value"])
        assert metrics[f"{name}_change"] == pytest.approx(row["change"])
    assert report(whole_run)["retention"]["new"] == pytest.approx(
        {
            name: metrics[f"forgetting/new/{name}"]
            for name in ("backward_transfer", "forward_transfer", "forgetting")
        }
    )


def test_metrics_are_logged_at_their_steps_whatever_the_interval(whole_run):
    with (whole_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    key = "forgetting/text/nll_nats_per_token"
    logged = {int(row["step"]): float(row[key]) for row in rows if row[key]}
    assert logged == pytest.approx(text_nll(whole_run))


def test_the_last_measurement_is_that_of_the_exported_model(whole_run):
    model = load_memory_lm(whole_run / "export").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(whole_run / "export")
    probe = TextPerplexity(RecordSource(), context_length=64, num_windows=8)
    probe.prepare(ProbeSetting(RowFormat(tokenizer, 128, 0, None), Shard()))
    with torch.no_grad():
        found = probe.measure(model)["nll_nats_per_token"]
    assert text_nll(whole_run)[18] == pytest.approx(found, rel=1e-6)


def test_a_figure_is_drawn_and_all_is_tracked(whole_run):
    assert (whole_run / "figures" / "forgetting.png").stat().st_size > 10_000
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{whole_run.parents[2]}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    names = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert "forgetting.json" in names
    history = client.get_metric_history(run.info.run_id, "forgetting/text/nll_nats_per_token")
    assert {m.step: m.value for m in history} == pytest.approx(text_nll(whole_run))


def test_its_configuration_can_be_run_again(whole_run, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(whole_run / "config.yaml"), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    found = printed["trainer"]["callbacks"][-2]["init_args"]["probes"]["new"]["init_args"]
    assert (found["first_visits"], found["wording"]) == (2, "statement")


def test_the_table_says_what_was_learned_and_forgotten(fit, capsys):
    run = fit("--trainer.max_steps", 3, probes=PROBES)
    shown = capsys.readouterr().out
    assert "learned: new, exact match" in shown
    assert "forgotten: old, exact match" in shown
    start, end = text_nll(run).values()
    assert f"{start:.4g} to {end:.4g} ({100 * (end / start - 1):+.2f}%)" in shown
    assert "forgetting/" not in shown  # the rows above stand for them


# -- training goes on as if nothing had happened --------------------------------------------------


def test_training_is_the_same_with_and_without(fit, whole_run):
    plain = fit()

    def losses(run: Path) -> list[tuple[str, str]]:
        with (run / "metrics.csv").open() as file:
            key = "train/nll_nats_per_token"
            return [(row["step"], row[key]) for row in csv.DictReader(file) if row.get(key)]

    assert losses(plain) == losses(whole_run)
    assert len(losses(plain)) == 2
    before, after = (load_memory_lm(run / "export").state_dict() for run in (plain, whole_run))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_slots_that_wait_for_their_step_learn_the_same(tiny, tmp_path):
    """Visits of three batches end within steps of two: reads of the first batch are waiting."""
    export = export_tiny_model(tmp_path / "export")
    sparse = {
        "class_path": "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning",
        "init_args": {"num_slots": 4, "ranking": "tf", "learning_rate": 5.0},
    }
    runs = []
    for probes in ([], [callback(probes=PROBES, every_n_visits=1)]):
        config = finetuning(export)
        config["data"]["init_args"]["steps_per_visit"] = 3
        config["trainer"] |= {
            "accumulate_grad_batches": 2,
            "limit_val_batches": 0,
            "callbacks+": [sparse, *probes],
        }
        runs.append(main(tiny(**config)))
    assert measured_at(runs[1]) == [(0, 0), (1, 1), (3, 2), (4, 3), (6, 4), (7, 5), (9, 6)]
    start, plain, probed = (
        load_memory_lm(folder).state_dict()
        for folder in (export, runs[0] / "export", runs[1] / "export")
    )
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert not torch.equal(start["memory_values.0.weight"], plain["memory_values.0.weight"])


def test_accumulated_steps_are_measured_once(fit):
    run = fit(trainer={"accumulate_grad_batches": 2, "max_steps": 4}, probes=TEXT, every_n_steps=2)
    assert [step for step, _ in measured_at(run)] == [0, 2, 4]


def test_data_without_visits(fit):
    data = {**STREAM, "class_path": "triptych.datamodules.remember.facts.facts.Facts"}
    arguments = {**STREAM["init_args"], "batch_size": 2}
    del arguments["steps_per_visit"]
    data["init_args"] = arguments
    options = {"data": data, "probes": TEXT, "trainer": {"max_epochs": 3}}
    run = fit(**options, every_n_steps=2, at_start=False)
    assert measured_at(run) == [(2, None), (3, None)]
    assert [row["change"] for row in report(run)["rows"] if row["step"] == 2] == [0.0] * 3
    with pytest.raises(ValueError, match=r"every_n_visits needs data that come visit by visit"):
        fit(**options, every_n_visits=2)


def test_validate_measures_once(tiny, model, whole_run):
    budget = {"max_rise_share": 0.0}
    trainer = {**TRAINER, "limit_val_batches": 1}
    trainer["callbacks+"] = [callback(probes=TEXT, budget=budget)]
    words = tiny(model=model, data=STREAM, trainer=trainer)[1:]
    checkpoint = whole_run / "checkpoints" / "last.ckpt"
    run = main(["validate", *words, "--ckpt_path", str(checkpoint), "--run_dir", "validated"])
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics["forgetting/text/nll_nats_per_token"] == pytest.approx(text_nll(whole_run)[18])


# -- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_at", [6, 7, 10])
def test_a_resumed_run_continues_the_history(fit, whole_run, saved_at):
    """Saved at the end of a visit, within one, and at a measurement by steps."""
    checkpoint = whole_run / "checkpoints" / f"{saved_at}.ckpt"
    torch.load(checkpoint, weights_only=True)  # plain types
    resumed = fit("--run_dir", "resumed", "--ckpt_path", checkpoint, **OFTEN)
    assert report(resumed) == report(whole_run)


def test_a_measurement_at_the_end_is_no_part_of_what_goes_on(fit):
    """It was made because the run ended, which the run that goes on does not."""
    options = {"probes": TEXT, "every_n_steps": 2, "trainer": {"max_epochs": 2}}
    ended = fit("--run_dir", "ended", "--trainer.max_steps", 3, **options)
    checkpoint = ended / "checkpoints" / "last.ckpt"
    resumed = fit("--ckpt_path", checkpoint, "--trainer.max_steps", 5, **options)
    assert [step for step, _ in measured_at(ended)] == [0, 2, 3]
    assert [step for step, _ in measured_at(resumed)] == [0, 2, 4, 5]


# -- the budget -----------------------------------------------------------------------------------


def test_the_budget_stops_at_the_right_step(fit, whole_run, capsys):
    """A limit that the untroubled run passes at some step, but not before."""
    nll = text_nll(whole_run)
    before = {step: max(list(nll.values())[:n]) for n, step in enumerate(nll) if n}
    expected = next(step for step in before if 0 < step < 18 and nll[step] > before[step])
    limit = (nll[expected] + before[expected]) / 2 / nll[0] - 1
    probes = {name: PROBES[name] for name in ("new", "text")}
    run = fit(**OFTEN | {"probes": probes}, budget={"max_rise_share": limit})
    assert json.loads((run / "summary.json").read_text())["steps"] == expected
    rows = [row for row in report(whole_run)["rows"] if row["step"] <= expected]
    assert [row for row in rows if row["probe"] in probes] == report(run)["rows"]
    said = report(run)["stopped"]
    visits = math.ceil(expected / 3)
    assert said.startswith(
        f"at step {expected}, after {visits} visits: text nll_nats_per_token rose by "
    )
    assert "forgetting budget spent" in capsys.readouterr().out
    assert (run / "export").is_dir()


class Falling(Probe):
    """Falls by ten points at each measurement."""

    headline = "accuracy"

    def __init__(self, role: Role) -> None:
        super().__init__(role, None, 0, None, "error", 1)
        self.value = 0.9

    def prepare(self, setting: ProbeSetting) -> None:
        """Nothing to read."""

    def measure(self, model: Any, limit_batches: int | None = None) -> dict[str, float]:
        self.value -= 0.1
        return {"accuracy": self.value}


@pytest.mark.parametrize(
    ("interval", "step", "visits"), [("every_n_steps", 4, 2), ("every_n_visits", 12, 4)]
)
def test_points_stop_a_run_too_and_learned_probes_do_not(fit, interval, step, visits):
    """The fourth measurement after the start is over; of the fifth visit nothing is learned."""
    falling = f"{__name__}.Falling"
    probes = {
        "kept": {"class_path": falling, "init_args": {"role": "retained"}},
        "taught": {"class_path": falling, "init_args": {"role": "learned"}},
    }
    run = fit(probes=probes, budget={"max_drop": 35}, **{interval: 1})
    assert json.loads((run / "summary.json").read_text())["steps"] == step
    assert measured_at(run)[-1] == (step, visits)
    assert len(values(run, "kept", "accuracy")) == 5
    said = report(run)["stopped"]
    assert said.startswith(f"at step {step}, after {visits} visits: kept accuracy fell by 40.00")
    assert "taught" not in said


# -- mistakes -------------------------------------------------------------------------------------


def test_mistakes_are_explained(fit, tmp_path):
    probe = TextPerplexity(role="learned")
    with pytest.raises(ValueError, match="has no probes"):
        ForgettingEvaluation({})
    with pytest.raises(ValueError, match="no probe with role: retained"):
        ForgettingEvaluation({"text": probe}, budget=ForgettingBudget(max_drop=1))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"ctx": "a", "endings": ["b", "c"]}\n')
    choices = {**PROBES["choices"], "init_args": {"source": {"path": str(bad)}}}
    with pytest.raises(
        ValueError, match=r"probe 'choices': .*bad\.jsonl, line 1: field 'label' is missing"
    ):
        fit(probes={"choices": choices})
    absent = {**PROBES["choices"], "init_args": {"source": {"path": "absent.jsonl"}}}
    with pytest.raises(FileNotFoundError, match=r"probe 'choices': no file at .*absent\.jsonl"):
        fit(probes={"choices": absent})


def test_other_modules_are_refused(tiny):
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1}
    trainer["callbacks+"] = [callback(probes=TEXT)]
    with pytest.raises(ValueError, match=r"needs a language model .* the `model` of TinyModule"):
        main(tiny(trainer=trainer))
