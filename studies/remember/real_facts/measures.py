"""What a model knows: taught facts, general questions, neighbours, running text, HellaSwag."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.remember.probes.base import Probe, ProbeSetting
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.commands.asked_model import AskedModel
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.question_answering import answer_in_reply
from triptych.models.disk_cache import default_cache_dir
from triptych.studies.arms import worker_pool
from triptych.studies.remember.real_facts.invented_facts import InventedFact, invented_facts
from triptych.studies.remember.real_facts.kept_questions import GENERAL, NEIGHBOURS, KnownQuestion
from triptych.studies.remember.real_facts.real_facts_settings import (
    LONGEST_INVENTED,
    LONGEST_KEPT,
)
from triptych.studies.remember.real_facts.shared_context_choices import SharedContextChoices

Measured = dict[str, Any]
QUESTIONS_AT_ONCE = 32
#: Longest row of HellaSwag in tokens; the beginning of a longer one is cut.
CHOICE_CONTEXT = 512
TEXT_WINDOW = 256
WEIGHTS = "model.safetensors"
REAL_TEXT = "pretrain/wikitext2_valid.txt.gz"


@dataclass(frozen=True)
class Plan:
    """What to measure of a model.

    Args:
        num_facts: Invented facts to ask, the first ones of the seed; 0: none.
        fact_seed: Seed of these facts.
        every: Ask only every n-th of them.
        wordings: Ask all wordings, or one taught and one held out of each fact.
        num_kept: General questions, and neighbours, to ask; None: all; 0: none.
        num_windows: Windows of running text; 0: none.
        num_choices: Rows of HellaSwag; 0: none.
        data_dir: Folder of the data; None: embedded text, and choices among embedded statements.
        reference: File of the untouched model's measurements, with its replies to the neighbours;
            None: without comparison.
    """

    num_facts: int = 0
    fact_seed: int = 0
    every: int = 1
    wordings: Literal["all", "one"] = "all"
    num_kept: int | None = 0
    num_windows: int = 0
    num_choices: int = 0
    data_dir: str | None = None
    reference: str | None = None

    @property
    def facts(self) -> list[InventedFact]:
        """The facts to ask."""
        return invented_facts(self.num_facts, self.fact_seed)[:: self.every]

    @property
    def key(self) -> str:
        """Hash of the settings and questions."""
        asked = [asdict(fact) for fact in self.facts] + [*self.general, *self.neighbours]
        lengths = [LONGEST_INVENTED, LONGEST_KEPT, TEXT_WINDOW, CHOICE_CONTEXT]
        settings = {**asdict(self), "reference": self.reference is not None}
        content = json.dumps([settings, asked, lengths])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def general(self) -> tuple[KnownQuestion, ...]:
        """The general questions to ask."""
        return GENERAL[: self.num_kept]

    @property
    def neighbours(self) -> tuple[KnownQuestion, ...]:
        """The neighbours to ask, of all relations if they are few."""
        if self.num_kept is None or self.num_kept >= len(NEIGHBOURS):
            return NEIGHBOURS
        step = len(NEIGHBOURS) // max(1, self.num_kept)
        return NEIGHBOURS[::step][: self.num_kept]


@dataclass(frozen=True)
class MeasureRun:
    """Measures the export of a run, in the process that trained it; see `arms.Afterwards`.

    Args:
        plan: What to measure; the seed of the facts is that of the run.
        keep_export: Whether the export stays; else its weights are removed when it is measured.
    """

    plan: Plan
    keep_export: bool = False

    def path(self, run: Path) -> Path:
        """Return the file of the measurements of a run."""
        return run / f"measured-{self._plan(run).key}.json"

    def is_done(self, run: Path) -> bool:
        """Return whether a run has been measured."""
        return self.path(run).is_file()

    def is_possible(self, run: Path) -> bool:
        """Return whether a run has been measured, or still has its export."""
        return self.is_done(run) or (run / "export" / WEIGHTS).is_file()

    def __call__(self, run: Path) -> None:
        """Measure a run's export, and perhaps remove it."""
        measure_once(run / "export", self._plan(run), self.path(run))
        if not self.keep_export:
            shutil.rmtree(run / "export", ignore_errors=True)
            shutil.rmtree(run / "ledger", ignore_errors=True)

    def read(self, run: Path) -> Measured:
        """Return the measurements of a run."""
        return read_measured(self.path(run))

    def _plan(self, run: Path) -> Plan:
        seed = int(run.name.removeprefix("seed"))
        return Plan(**{**asdict(self.plan), "fact_seed": seed})


def read_measured(path: Path) -> Measured:
    """Read measurements."""
    measured: Measured = json.loads(path.read_text(encoding="utf-8"))
    return measured


def measure_base(
    folder: Path, plans: Sequence[Plan], cache: Path, workers: int
) -> dict[Plan, Measured]:
    """Measure a model that is not trained by several plans, in parallel; results are kept.

    Args:
        folder: The model.
        plans: What to measure.
        cache: Folder of the results, by the content of model and plan.
        workers: Number of processes.
    """
    paths = {plan: base_path(folder, plan, cache) for plan in plans}
    measure_all({path: (folder, plan) for plan, path in paths.items()}, workers)
    return {plan: read_measured(path) for plan, path in paths.items()}


def base_path(folder: Path, plan: Plan, cache: Path) -> Path:
    """Return the file of a model's measurements in a folder of results."""
    return cache / f"{model_fingerprint(folder)}-{plan.key}.json"


def measure_all(jobs: Mapping[Path, tuple[Path, Plan]], workers: int) -> None:
    """Measure models in parallel, except those whose measurements are there.

    Args:
        jobs: Maps the file of the measurements to the model's folder and the plan.
        workers: Number of processes.
    """
    missing = {path: job for path, job in jobs.items() if not path.is_file()}
    if not missing:
        return
    with Progress() as progress, worker_pool(workers) as pool:
        task = progress.add_task("measurements", total=len(missing))
        futures = [pool.submit(measure_once, *job, path) for path, job in missing.items()]
        for future in futures:
            future.result()
            progress.advance(task)


@functools.cache
def model_fingerprint(folder: Path) -> str:
    """Hash the weights of a model and its tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            with path.open("rb") as file:
                digest.update(path.name.encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def measure_once(folder: Path, plan: Plan, path: Path) -> None:
    """Measure a model and write the measurements, unless they are there."""
    if path.is_file():
        return
    measured = measure(folder, plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, plan: Plan) -> Measured:
    """Measure a model.

    Args:
        folder: The model with its tokenizer.
        plan: What to measure.

    Returns:
        `num_taught`: facts of the plan, asked or not; `taught` and `held_out`: for each fact,
        whether the reply to each wording names its answer; `general` and `neighbours_right`: the
        same of known questions; `neighbours`: replies; `neighbour_tokens`: see `tokens_kept`;
        `replies`: all replies by question; `text_nats`: nats per token of running text; `choices`:
        the numbers of `MultipleChoice`.
    """
    model = AskedModel(folder)
    measured: Measured = {"num_taught": plan.num_facts}
    facts = plan.facts
    if facts:
        asked = [_wordings(fact, number, plan.wordings) for number, fact in enumerate(facts)]
        questions = [text for kinds in asked for kind in kinds for text in kind]
        replies = replies_to(model, questions, LONGEST_INVENTED)
        for place, kind in enumerate(("taught", "held_out")):
            measured[kind] = [
                [answer_in_reply(replies[text], fact.answers) for text in kinds[place]]
                for fact, kinds in zip(facts, asked, strict=True)
            ]
        measured["replies"] = replies
    if plan.num_kept != 0:
        known = [*plan.general, *plan.neighbours]
        replies = replies_to(model, [entry.question for entry in known], LONGEST_KEPT)
        measured["replies"] = {**measured.get("replies", {}), **replies}
        measured["general"] = _right(plan.general, replies)
        measured["neighbours_right"] = _right(plan.neighbours, replies)
        measured["neighbours"] = [replies[entry.question] for entry in plan.neighbours]
        if plan.reference is not None:
            untouched = read_measured(Path(plan.reference))["neighbours"]
            questions = [entry.question for entry in plan.neighbours]
            measured["neighbour_tokens"] = tokens_kept(model, questions, untouched)
    if plan.num_windows:
        source = RecordSource() if plan.data_dir is None else RecordSource(REAL_TEXT)
        text = TextPerplexity(
            source=source,
            context_length=TEXT_WINDOW,
            num_windows=plan.num_windows,
            data_dir=plan.data_dir,
        )
        measured["text_nats"] = _probed(text, model)["nll_nats_per_token"]
    if plan.num_choices:
        settings: dict[str, Any] = {"data_dir": plan.data_dir, "on_long_row": "cut"}
        if plan.data_dir is None:
            settings["source"] = RecordSource()
        choices = SharedContextChoices(num_rows=plan.num_choices, **settings)
        measured["choices"] = _probed(choices, model)
    return measured


def replies_to(model: AskedModel, questions: Sequence[str], longest: int) -> dict[str, str]:
    """Ask questions in the model's chat template and return its greedy replies.

    Args:
        model: The model.
        questions: The questions; those of about one length are asked together.
        longest: Longest reply in tokens.
    """
    template = model.chat_template()
    if template is None:
        raise ValueError(f"the model in {model.folder} has no chat template to be asked in")
    prompts = {
        text: model.encode_chat([{"role": "user", "content": text}], template) for text in questions
    }
    by_length = sorted(prompts, key=lambda text: len(prompts[text]))
    replies: dict[str, str] = {}
    for start in range(0, len(by_length), QUESTIONS_AT_ONCE):
        texts = by_length[start : start + QUESTIONS_AT_ONCE]
        made = model.replies([prompts[text] for text in texts], longest, 0.0)
        replies |= {text: reply for text, (reply,) in zip(texts, made, strict=True)}
    return replies


@torch.inference_mode()
def tokens_kept(model: AskedModel, questions: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Return for each reply the share of its tokens that the model finds most likely.

    For greedy replies of the untouched model this is the locality of EasyEdit: both models read
    question and reply, and the share of places is counted at which their best tokens agree.

    Args:
        model: The model that was taught.
        questions: The questions.
        replies: Greedy replies of the untouched model, cut at any length.
    """
    template = model.chat_template()
    assert template is not None
    shares = []
    for question, reply in zip(questions, replies, strict=True):
        prompt = model.encode_chat([{"role": "user", "content": question}], template)
        wanted = model.tokenizer(reply, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *wanted]], device=model.model.device, dtype=torch.int64)
        best = model.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
        agree = (best == ids[0, len(prompt) :]).float()
        shares.append(float(agree.mean()) if len(wanted) else 1.0)
    return shares


def _wordings(
    fact: InventedFact, number: int, wordings: Literal["all", "one"]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if wordings == "all":
        return fact.taught, fact.held_out
    taught, held_out = number % len(fact.taught), number % len(fact.held_out)
    return (fact.taught[taught],), (fact.held_out[held_out],)


def _right(questions: Sequence[KnownQuestion], replies: Mapping[str, str]) -> list[bool]:
    return [answer_in_reply(replies[entry.question], entry.answers) for entry in questions]


@torch.inference_mode()
def _probed(probe: Probe, model: AskedModel) -> dict[str, float]:
    """Measure a probe outside of a run."""
    cache_dir = default_cache_dir()
    config = TokenizerConfig(path=str(model.folder))
    tokenizer = build_tokenizer(config, tuple, "", cache_dir)
    longest = min(CHOICE_CONTEXT, model.positions or CHOICE_CONTEXT)
    probe.prepare(ProbeSetting(RowFormat(tokenizer, longest, 0, cache_dir), Shard()))
    return probe.measure(model.model)
