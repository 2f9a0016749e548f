"""``python train.py teach FACTS --model MODEL --out NEW``: facts, and whether they were learned."""

import contextlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from transformers import AutoConfig

from triptych import ROOT
from triptych.callbacks.atomic_file import atomic_folder
from triptych.callbacks.command_line.init_from import Stage
from triptych.commands.fact_questions import ask_facts, general_questions, questions_of
from triptych.commands.find_export import find_export, refuse_other_kinds
from triptych.commands.options import EXPORT, CommandParser
from triptych.commands.teach_report import print_facts, print_general, print_quality, say
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.models.host.checked_folder import read_settings
from triptych.models.pretrained_source import pretrained_source
from triptych.models.remember.memory_config_family import MODEL_TYPE_PREFIX, register_family_of
from triptych.objectives.remember.background_statistics import (
    BACKGROUND_FILE,
    BackgroundStatistics,
)

CONFIG = ROOT / "configs" / "remember" / "teach.yaml"
MEMORY_CONFIG = ROOT / "configs" / "remember" / "teach_memory.yaml"
#: Where among the blocks a new memory is put.
DEPTH = 2 / 3
#: Settings for a memory that began at zero beside an FFN: rates are parts of the FFN's output.
RELATIVE = {"learning_rate_scale": "relative", "learning_rate": 0.7} | {
    "num_slots": 1024,
    "idf_exponent": 3.0,
    "protection": 10.0,
}
EPILOG = """examples:
  python train.py teach facts.jsonl --model runs/retrofit/*/export --out taught
  python train.py teach more.jsonl --model taught --out taught_twice
  python train.py teach facts.csv --model smollm2 --out taught
  python train.py chat taught
  python train.py unlearn "Brightwell Robotics is led by Ingrid Solvang." --model taught --out new

Settings are those of configs/remember/teach.yaml; further options change them, as in `fit`:
  --callback.SparseMemoryFinetuning.learning_rate 0.1 --data.init_args.steps_per_visit 40
"""


def run_teach_command(words: Sequence[str]) -> Path:
    """Teach the facts of a file to a model, and print for each what the model knew and knows.

    Args:
        words: The command line after ``teach``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if a file or folder is missing.
        ValueError: if the facts or the model cannot be used.

    Returns:
        The new model's folder; the old one's if nothing was left to teach.
    """
    parser = _parser()
    options, others = parser.parse_known_args([str(word) for word in words])
    if options.facts != str(words[0]):  # further options have values of any kind
        parser.error(f"the file of facts comes first, but the first word is {words[0]}")
    out = Path(options.out)
    if out.exists():
        raise ValueError(f"--out {out} exists already: choose another name")
    start = prepared(options.model)
    given = [
        *("--config", str(CONFIG), *_rates(start), *others),
        *("--model.init_args.init_from", str(start)),
        *("--data.init_args.facts.source.path", options.facts),
    ]
    facts, general = questions_of(_stream(_composed(given), start)), general_questions()
    say(f"asking {len(facts)} facts and {len(general)} general questions")
    said = ask_facts([*facts, *general], start, options.device)
    before, general_before = said[: len(facts)], said[len(facts) :]
    known = [] if options.again else [f.id for f, r in zip(facts, before, strict=True) if r.own]
    if len(known) == len(facts):
        print_facts(facts, before, None, known)
        say(f"the model knows all {len(facts)} facts already: nothing was taught or written")
        return start
    run = _fit([*given, "--data.init_args.facts.leave_out", yaml.safe_dump(known)])
    with atomic_folder(out) as folder:
        shutil.copytree(run / "export", folder, copy_function=_link, dirs_exist_ok=True)
    said = ask_facts([*facts, *general], out, options.device)
    after, general_after = said[: len(facts)], said[len(facts) :]
    print_facts(facts, before, after, known)
    taught = [place for place, fact in enumerate(facts) if fact.id not in known]
    print_quality(*([of[place] for place in taught] for of in (facts, before, after)))
    print_general(general_before, general_after)
    say(f"written to {out}; the record of the run is {run}")
    return out


def prepared(model: str) -> Path:
    """Return a folder with a model with memory and background statistics; both are made once.

    Args:
        model: Export, run, name on the hub, GGUF file or packaged model.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is no language model.
        StageError: if its memory cannot be inserted.
    """
    source = str(pretrained_source(model))
    folder = find_export(source)
    refuse_other_kinds(folder, "text")
    register_family_of(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    has_memory = str(config.model_type).startswith(MODEL_TYPE_PREFIX)
    if has_memory and (folder / BACKGROUND_FILE).is_file():
        return folder
    place = str(folder.resolve())
    words = ["--tracking.uri", "null"]
    if has_memory:
        words += ["--model.init_args.init_from", place, "--model.init_args.memory", "null"]
    else:
        block = min(round(DEPTH * config.num_hidden_layers), config.num_hidden_layers - 1)
        words += ["--model.init_args.base.pretrained", place]
        words += ["--model.init_args.memory.layers", f"[{block}]"]
    settings = _composed(["--config", str(MEMORY_CONFIG), *words])
    return Stage(MEMORY_CONFIG, settings, tuple(words)).export()


def _rates(start: Path) -> list[str]:
    """Return options for relative rates, for a memory that was put into a pretrained model."""
    memory = read_settings(start / "config.json").get("memory") or {}
    began_at_zero = memory.get("placement") == "beside" and memory.get("start") == "zero_values"
    scales = BackgroundStatistics.load(start / BACKGROUND_FILE).value_scales
    if not began_at_zero or scales is None:
        return []
    prefix = "--callback.SparseMemoryFinetuning"
    return [w for name, value in RELATIVE.items() for w in (f"{prefix}.{name}", str(value))]


def _parser() -> CommandParser:
    parser = CommandParser(
        "teach",
        description="Teach facts to a model with memory, one after another. A model without memory "
        "gets one first.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "facts", metavar="FACTS", help="file of facts: question, answers, perhaps statement and id"
    )
    parser.add_argument("--model", required=True, help=f"{EXPORT}; or smollm2, or a GGUF file")
    parser.add_argument("--out", required=True, help="new folder for the model that has learned")
    parser.add_argument(
        "--again", action="store_true", help="teach also the facts that the model knows already"
    )
    parser.add_argument(
        "--device", help="where to ask: cpu, cuda, ...; by default the best there is"
    )
    return parser


def _composed(words: Sequence[str]) -> dict[str, Any]:
    """Return the composed configuration of a run."""
    from triptych.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["fit", *words, "--print_config"])
    settings: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return settings


def _stream(settings: dict[str, Any], start: Path) -> FactStream:
    """Return the stream of facts with the tokenizer of the model that is to learn them."""
    tokenizer = settings["data"]["init_args"].setdefault("tokenizer", {})
    if tokenizer.get("path", "train") == "train":
        tokenizer["path"] = str(start)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    made = parser.instantiate_classes(parser.parse_object({"data": settings["data"]})).data
    if not isinstance(made, FactStream):
        raise ValueError(f"teach needs data of the class FactStream, not {type(made).__name__}")
    return made


def _fit(words: Sequence[str]) -> Path:
    from triptych.cli import main

    return main(["fit", *words])


def _link(source: str, target: str) -> None:
    """Give a file a second place without a second copy, where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
