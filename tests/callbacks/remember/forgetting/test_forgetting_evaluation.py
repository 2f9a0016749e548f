"""Whole runs with probes: what is measured when, what is kept of it, and what stops a run."""

import copy
import csv
import json
import math
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, Trainer
from transformers import PreTrainedTokenizerFast

from tests.callbacks.remember.finetuning_runs import Finetune, export, finetune
from tests.callbacks.test_callbacks import fit as fit_tiny
from tests.conftest import run_in
from tests.lit_modules.remember.test_memory_pretraining import TINY as PRETRAINING
from triptych.callbacks.remember.forgetting.forgetting_budget import ForgettingBudget
from triptych.callbacks.remember.forgetting.forgetting_evaluation import ForgettingEvaluation
from triptych.callbacks.remember.probes.base import Probe, ProbeSetting, Role
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.export_model import ExportModel
from triptych.callbacks.run.step_seeds import StepSeeds
from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.cli import main
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.datamodules.sources.records import RecordSource
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.remember.memory_lm import load_memory_lm

__all__ = ["export", "finetune"]

EMBEDDED = {"path": "embedded"}
# In the order of the alphabet, as a configuration is written.
PROBES = {
    "answers": {
        "class_path": "triptych.callbacks.remember.probes.answer_nll.AnswerNLL",
        "init_args": {"source": EMBEDDED, "num_rows": 6},
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
    "new": {
        "class_path": "triptych.callbacks.remember.probes.fact_recall.FactRecall",
        "init_args": {"wording": "statement", "first_visits": 2, "visits_per_group": 2},
    },
    "old": {
        "class_path": "triptych.callbacks.remember.probes.fact_recall.FactRecall",
        "init_args": {"facts": {"skip_facts": 6, "num_facts": 5}, "role": "retained"},
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


TEACHING = {"learning_rate": 0.02, "max_new_tokens": 3}
FURTHER = {**TEACHING, "warmup_steps": 0, "schedule_steps": 100}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """The export of a model that was taught running text, to forget it in 18 steps more."""
    arguments = {**PRETRAINING["model"]["init_args"], **TEACHING, "schedule_steps": 60}
    del arguments["sample_prompts"]
    sections = {
        **PRETRAINING,
        "model": {**PRETRAINING["model"], "init_args": arguments},
        "trainer": {**TRAINER, "max_epochs": -1, "max_steps": 40},
    }
    return run_in(tmp_path_factory.mktemp("base"), **sections) / "export"


def built(section: dict[str, Any]) -> ForgettingEvaluation:
    """The callback that a section of a configuration describes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=ForgettingEvaluation)
    return parser.instantiate(parser.parse_object({"callback": copy.deepcopy(section)})).callback


@dataclass(frozen=True)
class Fitted:
    """A run that was made here, and its directory."""

    folder: Path
    trainer: Trainer
    module: MemoryPretraining


def trainer_in(folder: Path, evaluation: ForgettingEvaluation | None, **settings: Any) -> Trainer:
    """What `train.py` would build of `TRAINER`, without what a user looks at."""
    return Trainer(
        default_root_dir=folder,
        logger=LocalMetrics(folder),
        callbacks=[StepSeeds(), ExportModel(), *filter(None, [evaluation]), Checkpoint()],
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **TRAINER | settings,
    )


def stream(tokenizer: Path) -> FactStream:
    """`STREAM`, built in Python."""
    facts = FactsConfig(num_facts=6, validation_facts=2)
    settings = {"context_length": 128, "steps_per_visit": 3}
    return FactStream(facts, tokenizer=TokenizerConfig(path=str(tokenizer)), **settings)


@pytest.fixture
def fit(taught: Path, tmp_path_factory) -> Callable[..., Fitted]:
    """Runs 18 steps, three for each of six facts; the arguments are the callback's."""

    def run(
        trainer: dict[str, Any] | None = None,
        data: LightningDataModule | None = None,
        ckpt_path: Path | None = None,
        **options: Any,
    ) -> Fitted:
        folder = tmp_path_factory.mktemp("run")
        evaluation = built(callback(**options)) if options else None
        data = data or stream(taught)
        torch.manual_seed(42)
        module = MemoryPretraining(data.vocab_size, init_from=str(taught), **FURTHER)
        fitted = trainer_in(folder, evaluation, **trainer or {})
        fitted.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return Fitted(folder, fitted, module)

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


SHOWN = "shown.txt"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, taught) -> Path:
    """A run with every probe, by a configuration, tracked by MLflow.

    Its checkpoints of all steps are kept, and what it printed.
    """
    copies = {"class_path": f"{__name__}.CopyCheckpoints"}
    model = {**PRETRAINING["model"], "init_args": {"init_from": str(taught), **FURTHER}}
    sections = {
        "model": model,
        "data": STREAM,
        "trainer": {**TRAINER, "callbacks+": [callback(**OFTEN), copies]},
        "checkpoint": {"every_n_train_steps": 1},
        "tracking": {"uri": "sqlite:///mlflow.db"},
    }
    with redirect_stdout(StringIO()) as shown:
        run = run_in(tmp_path_factory.mktemp("whole"), name="whole", **sections)
    (run / SHOWN).write_text(shown.getvalue())
    return run


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


def test_the_table_says_what_was_learned_and_forgotten(whole_run):
    shown = (whole_run / SHOWN).read_text()
    assert "learned: new, exact match" in shown
    assert "forgotten: old, exact match" in shown
    start, *_, end = text_nll(whole_run).values()
    assert f"{start:.4g} to {end:.4g} ({100 * (end / start - 1):+.2f}%)" in shown
    assert "forgetting/" not in shown  # the rows above stand for them


# -- training goes on as if nothing had happened --------------------------------------------------


def test_training_is_the_same_with_and_without(fit, whole_run):
    plain = fit().folder

    def losses(run: Path) -> list[str]:
        with (run / "metrics.csv").open() as file:
            key = "train/nll_nats_per_token"
            return [row[key] for row in csv.DictReader(file) if row.get(key)]

    assert losses(plain) == losses(whole_run)
    assert len(losses(plain)) == 2
    before, after = (load_memory_lm(run / "export").state_dict() for run in (plain, whole_run))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_slots_that_wait_for_their_step_learn_the_same(finetune: Finetune, export: Path):
    """Visits of three batches end within steps of two: reads of the first batch are waiting."""
    trainer = {"accumulate_grad_batches": 2, "limit_train_batches": 1.0}
    probes = {name: PROBES[name] for name in ("new", "text")}
    runs = [
        finetune(
            SparseMemoryFinetuning(num_slots=4, ranking="tf", learning_rate=5.0),
            *evaluations,
            steps_per_visit=3,
            trainer=trainer,
        )
        for evaluations in ([], [built(callback(probes=probes, every_n_visits=1))])
    ]
    plain, probed = (run.weights for run in runs)
    assert measured_at(runs[1].folder) == [
        *((0, 0), (1, 1), (3, 2), (4, 3), (6, 4), (7, 5), (9, 6)),
    ]
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    name = "memory_values.0.weight"
    assert not torch.equal(load_memory_lm(export).state_dict()[name], plain[name])


def test_accumulated_steps_are_measured_once(fit):
    trainer = {"accumulate_grad_batches": 2, "max_steps": 4}
    run = fit(trainer=trainer, probes=TEXT, every_n_steps=2)
    assert [step for step, _ in measured_at(run.folder)] == [0, 2, 4]


def test_data_without_visits(fit, taught):
    def data() -> Facts:
        facts, tokenizer = FactsConfig(num_facts=6), TokenizerConfig(path=str(taught))
        return Facts(facts, tokenizer=tokenizer, context_length=128, batch_size=2)

    options = {"probes": TEXT, "trainer": {"max_epochs": 3}}
    run = fit(data=data(), **options, every_n_steps=2, at_start=False).folder
    assert measured_at(run) == [(2, None), (3, None)]
    assert [row["change"] for row in report(run)["rows"] if row["step"] == 2] == [0.0] * 3
    with pytest.raises(ValueError, match=r"every_n_visits needs data with visits"):
        fit(data=data(), **options, every_n_visits=2)


def test_validate_measures_once(taught, whole_run, tmp_path):
    evaluation = built(callback(probes=TEXT, budget={"max_rise_share": 0.0}))
    trainer = trainer_in(tmp_path, evaluation, limit_val_batches=1)
    data = stream(taught)
    module = MemoryPretraining(data.vocab_size, init_from=str(taught), **FURTHER)
    checkpoint = whole_run / "checkpoints" / "last.ckpt"
    trainer.validate(module, data, checkpoint, verbose=False, weights_only=True)
    measured = trainer.callback_metrics["forgetting/text/nll_nats_per_token"]
    assert float(measured) == pytest.approx(text_nll(whole_run)[18])


# -- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_at", [6, 7, 10])
def test_a_resumed_run_continues_the_history(fit, whole_run, saved_at):
    """Saved at the end of a visit, within one, and at a measurement by steps."""
    checkpoint = whole_run / "checkpoints" / f"{saved_at}.ckpt"
    torch.load(checkpoint, weights_only=True)  # plain types
    resumed = fit(ckpt_path=checkpoint, **OFTEN)
    assert report(resumed.folder) == report(whole_run)


def test_a_measurement_at_the_end_is_no_part_of_what_goes_on(fit):
    """It was made because the run ended, which the run that goes on does not."""

    def run(max_steps: int, ckpt_path: Path | None = None) -> Path:
        trainer = {"max_epochs": 2, "max_steps": max_steps}
        return fit(trainer, ckpt_path=ckpt_path, probes=TEXT, every_n_steps=2).folder

    ended = run(3)
    resumed = run(5, ended / "checkpoints" / "last.ckpt")
    assert [step for step, _ in measured_at(ended)] == [0, 2, 3]
    assert [step for step, _ in measured_at(resumed)] == [0, 2, 4, 5]


# -- the budget -----------------------------------------------------------------------------------


def test_the_budget_stops_at_the_right_step(fit, whole_run):
    """A limit that the untroubled run passes at some step, but not before."""
    nll = text_nll(whole_run)
    before = {step: max(list(nll.values())[:n]) for n, step in enumerate(nll) if n}
    expected = next(step for step in before if 0 < step < 18 and nll[step] > before[step])
    limit = (nll[expected] + before[expected]) / 2 / nll[0] - 1
    probes = {name: PROBES[name] for name in ("new", "text")}
    fitted = fit(**OFTEN | {"probes": probes}, budget={"max_rise_share": limit})
    assert fitted.trainer.global_step == expected
    run = fitted.folder
    rows = [row for row in report(whole_run)["rows"] if row["step"] <= expected]
    assert [row for row in rows if row["probe"] in probes] == report(run)["rows"]
    said = report(run)["stopped"]
    visits = math.ceil(expected / 3)
    assert said.startswith(
        f"at step {expected}, after {visits} visits: text nll_nats_per_token rose by "
    )
    (evaluation,) = [c for c in fitted.trainer.callbacks if isinstance(c, ForgettingEvaluation)]
    assert ("forgetting budget spent", said) in evaluation.summary_rows()
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
    fitted = fit(probes=probes, budget={"max_drop": 35}, **{interval: 1})
    assert fitted.trainer.global_step == step
    run = fitted.folder
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


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs a language model .* the `model` of TinyModule"):
        fit_tiny(tmp_path, built(callback(probes=TEXT)))
