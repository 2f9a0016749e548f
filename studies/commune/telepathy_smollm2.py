"""Do thoughts carry facts between real language models that never saw these facts?

    python -m studies.telepathy --preset smollm2

Frozen SmolLM2-135M-Instruct agents read different notes on who is where (32 names, 8 places, 12
wordings), and each is asked what only the next agent's note says. A codec is trained on their
states and an adapter on their answers; both are then asked about facts and wordings that were in no
training row (`telepathy_notes`). Compared: agents alone, the first words of the others' notes as
text, whole notes, thoughts, thoughts of another question, the mean thought, no prefix, and the
other agents' KV caches passed on without training. The axes are the place of the prefix and the
number of state tokens. States are cached, and timed apart.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.studies.arms import (
    SEED_OF_DATA_TOO,
    Arm,
    Settings,
    device_of,
    exports,
    probe,
    read_summary,
    run_arms,
    written,
)
from triptych.studies.commune.telepathy_notes import KINDS, Kind, write_notes
from triptych.studies.commune.telepathy_notes_figure import draw
from triptych.studies.options import seeds_of
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    at_most,
    paired_test,
    summarize,
    write_results,
)

CLAIM = "thoughts carry unseen facts between frozen real language models as well as text does"
PRESETS = ("smollm2", "smollm2_smoke")
CONDITIONS = ("single", "text_2", "text_4", "text_full", "thought", "shuffled", "constant")
CONDITIONS_TOO = ("zero", "no_prefix")
PASSED = "KV passed"
NEAR_TEXT, LEAST_GAIN, NEAR_SINGLE = 0.02, 0.25, 0.05
CARRIED_FILE = "carried.json"
COMMUNE = "triptych.lit_modules.commune"


@dataclass(frozen=True)
class Sizes:
    """How much the study trains and asks.

    Args:
        num_train: Training rows.
        num_val: Held-out rows.
        codec_steps: Steps of the codec, on 128 states.
        adapter_steps: Steps of the adapter, on 8 questions of every agent.
        num_latents: Latents of the codec.
    """

    num_train: int = 768
    num_val: int = 64
    codec_steps: int = 400
    adapter_steps: int = 160
    num_latents: int = 64


SIZES = {"smollm2": Sizes(), "smollm2_smoke": Sizes(16, 8, 2, 1, 8)}


@dataclass(frozen=True)
class NotesWay:
    """One way of exchanging thoughts on notes.

    Args:
        num_agents: Number of agents.
        place: Place of the prefix; None: that of the product.
        num_states: Number of last tokens whose states are read, side by side.
    """

    num_agents: int = 2
    place: str | None = None
    num_states: int = 1

    @property
    def label(self) -> str:
        """Name in tables."""
        parts = [f"{self.num_agents} agents"]
        parts += [] if self.place is None else [self.place.replace("_", " ")]
        parts += [] if self.num_states == 1 else [f"{self.num_states} state tokens"]
        return ", ".join(parts)


TWO, THREE = NotesWay(), NotesWay(3)
#: Measured with one seed: they are axes, and not the claim.
AXES = (
    *(NotesWay(place=place) for place in ("before_prompt", "after_bos", "before_reply")),
    *(NotesWay(num_states=number) for number in (4, 16)),
)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    sizes, seeds = SIZES[options.preset], seeds_of(options)
    is_smoke = options.preset != "smollm2"
    seeds = seeds[:1] if is_smoke else seeds
    out = options.out / options.preset
    axes = (AXES[0], NotesWay(num_states=2)) if is_smoke else AXES
    claimed = (TWO,) if is_smoke else (TWO, THREE)
    begin = time.perf_counter()
    runs = run_ways(claimed, seeds, out, sizes, options.workers)
    runs |= run_ways(axes, seeds[:1], out, sizes, options.workers)
    passed = {way.label: passed_on(way, out, sizes) for way in claimed}
    numbers = {label: [read_numbers(place) for place in dirs] for label, dirs in runs.items()}
    for label, per_seed in numbers.items():
        for found in per_seed:
            found.update(passed.get(label, {}))
    extra = {"axes": [way.label for way in axes], "claimed": [way.label for way in claimed]}
    draw(numbers, extra["claimed"], options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [
            paired_test(
                f"{way.label}: {first} - {second}",
                [found[first] for found in numbers[way.label]],
                [found[second] for found in numbers[way.label]],
            )
            for way in claimed
            for first, second in (("thought", "text_full"), ("thought", "single"))
        ],
        checks(numbers, [way.label for way in claimed]),
        device=device_of(*runs.values()),
        seeds=seeds,
        seconds=time.perf_counter() - begin,
        **extra,
    )


def checks(numbers: Numbers, claimed: Sequence[str]) -> dict[str, Check]:
    """Compare means over seeds with the bounds that were fixed beforehand."""
    found: dict[str, Check] = {}
    for label in claimed:
        mean = {
            name: sum(n[name] for n in numbers[label]) / len(numbers[label]) for name in CONDITIONS
        }
        found |= {
            f"{label}: full text - thought": at_most(
                mean["text_full"] - mean["thought"], NEAR_TEXT
            ),
            f"{label}: thought - single": at_least(mean["thought"] - mean["single"], LEAST_GAIN),
            f"{label}: shuffled off single": at_most(
                abs(mean["shuffled"] - mean["single"]), NEAR_SINGLE
            ),
            f"{label}: constant off single": at_most(
                abs(mean["constant"] - mean["single"]), NEAR_SINGLE
            ),
        }
    return found


def run_ways(
    chosen: Sequence[NotesWay], seeds: Sequence[int], out: Path, sizes: Sizes, workers: int
) -> dict[str, list[Path]]:
    """Train a codec and an adapter for each way and seed; finished runs are not repeated."""

    def stage(arms: dict[Any, Arm], then: Any = None) -> dict[Any, list[Path]]:
        dirs = run_arms(list(arms.values()), seeds, out, workers, SEED_OF_DATA_TOO, then)
        return {key: dirs[arm.name] for key, arm in arms.items()}

    configs = out / "configs"
    codecs = stage(
        {
            (way.num_agents, way.num_states): written(
                f"codec-{way.num_agents}-{way.num_states}", codec(way, out, sizes), configs
            )
            for way in chosen
        }
    )
    adapters = stage(
        {
            way: written(
                "adapter-" + way.label.replace(", ", "-").replace(" ", "_"),
                adapter(way, out, sizes),
                configs,
                exports(seeds, codecs[way.num_agents, way.num_states]),
            )
            for way in chosen
        },
        MeasureCarried(out, sizes),
    )
    return {way.label: adapters[way] for way in chosen}


def task(num_agents: int, out: Path, sizes: Sizes, kind: Kind = "held_out") -> Settings:
    """Return the settings of the task; its rows are written first."""
    rows = write_notes(out / "notes", "train", num_agents, sizes.num_train)
    held_out = write_notes(out / "notes", kind, num_agents, sizes.num_val)
    return {
        "source": {"path": str(rows)},
        "val_source": {"path": str(held_out)},
        "num_agents": num_agents,
        "num_train": None,
        "num_val": None,
        "max_new_tokens": 2,
    }


def codec(way: NotesWay, out: Path, sizes: Sizes) -> Settings:
    """Return the configuration of a codec's run."""
    state = {} if way.num_states == 1 else {"pool": "sequence", "num_states": way.num_states}
    model = probe(
        f"{COMMUNE}.thought_autoencoder.ThoughtAutoencoder",
        agents={"bases": [{"pretrained": "smollm2"}], "num_agents": way.num_agents},
        state=state,
        codec={
            "num_latents": sizes.num_latents,
            "encoder_hidden": [256],
            "decoder_hidden": [256],
        },
        penalty=None,
        learning_rate=1e-3,
    )
    steps = sizes.codec_steps
    return {"data": _data(way, out, sizes, 128), "model": model, "trainer": _trainer(steps)}


def adapter(way: NotesWay, out: Path, sizes: Sizes) -> Settings:
    """Return the configuration of an adapter's run."""
    model = probe(
        f"{COMMUNE}.thought_adapter.ThoughtAdapter",
        adapter={
            "routing": {"mode": "all"},
            "num_prefix_tokens": 2,
            "hidden": [256],
            "initial_gate": 1.0,
            "place": way.place,
        },
        reference="task",
        max_reference_tokens=2,
        text_budgets=[2, 4],
        probe_samples=0,
        learning_rate=3e-3,
        warmup_steps=5,
    )
    steps = sizes.adapter_steps
    return {"data": _data(way, out, sizes, 8), "model": model, "trainer": _trainer(steps)}


class MeasureCarried:
    """Asks a trained system what it carries: new facts, new wordings, and both.

    Args:
        out: Folder of the preset.
        sizes: Sizes of the study.
    """

    def __init__(self, out: Path, sizes: Sizes) -> None:
        self.out, self.sizes = out, sizes

    def is_done(self, run: Path) -> bool:
        """Return whether the file of this measurement exists."""
        return (run / CARRIED_FILE).is_file()

    def is_possible(self, run: Path) -> bool:
        """Return whether the run's export exists."""
        return (run / "export").is_dir()

    def __call__(self, run: Path) -> None:
        """Measure the accuracy of replies with thoughts, by kind of row."""
        import torch

        from triptych.datamodules.commune.noted_questions import NotedQuestions
        from triptych.datamodules.sources.records import RecordSource
        from triptych.lit_modules.commune.debate import Debate
        from triptych.models.commune.thought_system import ThoughtSystem

        system = ThoughtSystem.load(run / "export")
        num_agents, carried = len(system.agents), {}
        for kind in KINDS:
            settings = task(num_agents, self.out, self.sizes, kind)
            for name in ("source", "val_source"):
                settings[name] = RecordSource(**settings[name])
            questions_task = NotedQuestions(**settings)
            debate, right, total = Debate(system.agents, questions_task), 0, 0
            questions = questions_task.questions("val")
            for start in range(0, len(questions), 16):
                asked = questions[start : start + 16]
                with torch.no_grad():
                    thoughts = system.think(debate.states(asked, system.state))
                    prefixes = system.prefixes(thoughts)
                found, asked_of = debate.correct(asked, debate.replies(asked, prefixes=prefixes))
                right, total = right + found, total + asked_of
            carried[f"thought, {kind.replace('_', ' ')}"] = right / total
        (run / CARRIED_FILE).write_text(json.dumps(carried, indent=2) + "\n")


def passed_on(way: NotesWay, out: Path, sizes: Sizes) -> dict[str, float]:
    """Measure the caches that are passed on; once, since nothing is trained."""
    path = out / f"passed-{way.num_agents}-{sizes.num_val}.json"
    if not path.is_file():
        from triptych.datamodules.commune.noted_questions import NotedQuestions
        from triptych.datamodules.sources.records import RecordSource
        from triptych.models.commune.agent import load_agent
        from triptych.models.pretrained_source import pretrained_source
        from triptych.studies.commune.passed_caches import replies_with_passed_caches

        settings = task(way.num_agents, out, sizes)
        for name in ("source", "val_source"):
            settings[name] = RecordSource(**settings[name])
        questions_task = NotedQuestions(**settings)
        questions = questions_task.questions("val")
        agent = load_agent(pretrained_source("smollm2"))
        found = replies_with_passed_caches(agent, questions_task, questions)
        right = [
            questions_task.read_answer(reply) == question.answer_of(number)
            for number, replies in enumerate(found.replies)
            for question, reply in zip(questions, replies, strict=True)
        ]
        values = {
            PASSED: sum(right) / len(right),
            f"{PASSED}, bytes": found.bytes_per_question,
            f"{PASSED}, ms": found.milliseconds_per_question,
        }
        path.write_text(json.dumps(values, indent=2) + "\n")
    saved: dict[str, float] = json.loads(path.read_text())
    return saved


def read_numbers(run: Path) -> dict[str, float]:
    """Select the compared numbers of a run: accuracies, bytes and milliseconds."""
    metrics: Mapping[str, float] = read_summary(run)["metrics"]
    found: dict[str, float] = {}
    for name in (*CONDITIONS, *CONDITIONS_TOO):
        found[name] = metrics[f"val/{name}/accuracy"]
        for unit, key in (("bytes", "bytes_per_question"), ("ms", "milliseconds_per_question")):
            if (value := metrics.get(f"val/{name}/{key}")) is not None:
                found[f"{name}, {unit}"] = value
    found["latents, bytes"] = metrics["val/thought/latent_bytes_per_question"]
    found["states, ms"] = metrics["val/thought/state_milliseconds_per_question"]
    carried: dict[str, float] = json.loads((run / CARRIED_FILE).read_text())
    return found | carried


def _data(way: NotesWay, out: Path, sizes: Sizes, batch_size: int) -> Settings:
    return probe(
        "triptych.datamodules.commune.agent_states.AgentStates",
        task=probe(
            "triptych.datamodules.commune.noted_questions.NotedQuestions",
            **task(way.num_agents, out, sizes),
        ),
        batch_size=batch_size,
        eval_batch_size=16,
        state_batch_size=16,
    )


def _trainer(steps: int) -> Settings:
    return {
        "max_steps": steps,
        "val_check_interval": steps,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
    }
