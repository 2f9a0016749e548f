"""``python train.py predict EXPORT``: a file of prompts in, a file of answers out; or molecules."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from transformers import set_seed

from triptych.callbacks.exporting.export_kind import kind_of_export
from triptych.commands.answer_file import AnswerFile, read_prompts
from triptych.commands.asked_model import AskedModel
from triptych.commands.find_export import find_export, refuse_other_kinds
from triptych.commands.options import CommandParser, add_generation_options, positive_int
from triptych.commands.sample import sample_molecules as sample_molecules_of

EPILOG = """rows of --input (.jsonl .csv .parquet .txt, .gz too):
  {"prompt": "..."} or {"question": "..."}, with `answers` (accepted ones) if they are known;
  in a .txt each line is a prompt. Rows of --output have the fields of the input, and `output`, or
  `outputs` with --samples; `exact_match` where there are `answers`.

agents: rows are those of their task ({"question": "..."}, with `answer` if it is known); a task
  that makes its questions takes --samples in place of --input. Rows of --output have each agent's
  reply and answer after the exchange, their consensus and their majority.

examples:
  python train.py predict runs/quickstart/*/export --input questions.txt --output answers.jsonl
  python train.py predict runs/molecules_prior/*/export --samples 1000 --output molecules.smi
  python train.py predict runs/adapter/*/export --samples 100 --output debates.jsonl
"""


def run_predict_command(words: Sequence[str]) -> Path:
    """Answer a file, or sample molecules.

    Args:
        words: The command line after ``predict``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if the export or the file is missing.
        ValueError: if the export cannot answer, a row is malformed, or the output exists.

    Returns:
        The file of answers.
    """
    parser = CommandParser(
        "predict",
        description="Answer a file of prompts or questions, or sample molecules.",
        epilog=EPILOG,
    )
    add_generation_options(parser)
    parser.add_argument("--input", metavar="FILE", help="prompts or questions")
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="new .jsonl; .smi for molecules"
    )
    parser.add_argument("--batch_size", type=positive_int, default=16, help="by default 16")
    parser.add_argument(
        "--samples",
        type=positive_int,
        help="answers to each row, by default 1; or molecules; or fresh questions to agents",
    )
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--resume", action="store_true", help="go on with an unfinished --output")
    exists.add_argument("--overwrite", action="store_true", help="replace --output")
    options = parser.read(words)
    folder, output = find_export(options.export), Path(options.output)
    if output.exists() and not (options.resume or options.overwrite):
        raise ValueError(
            f"--output {output} exists already: choose another name, or give --resume to go on "
            "with it, or --overwrite"
        )
    set_seed(options.seed)
    kind = kind_of_export(folder)
    if kind == "molecules" and options.input is None:
        return sample_molecules(folder, output, options.samples or 1, options.seed)
    if output.suffix != ".jsonl":
        raise ValueError(f"--output {output}: answers are written as .jsonl")
    if kind in ("agents", "thoughts"):
        from triptych.commands.debated_answers import predict_debates

        return predict_debates(folder, output, options, parser)
    refuse_other_kinds(folder, "text")
    if options.input is None:
        parser.error("--input is missing: name a file of prompts or questions")
    rows = read_prompts(options.input)
    samples = options.samples or 1
    with AnswerFile(output, [row.fields for row in rows], options.resume) as answers:
        todo = rows[answers.num_done :]
        if not todo:
            return output
        model = AskedModel(folder, options.device)
        template = None if options.raw else model.chat_template(options.template)
        batches = range(0, len(todo), options.batch_size)
        console = Console(stderr=True)
        for start in track(batches, "answering", console=console, disable=not console.is_terminal):
            batch = todo[start : start + options.batch_size]
            prompts = [row.encode(model, template, options.system) for row in batch]
            replies = model.replies(prompts, options.max_new_tokens, options.temperature, samples)
            answers.write([row.answered(made) for row, made in zip(batch, replies, strict=True)])
    print(f"{len(rows):,} rows answered in {output}. {answers.score()}".strip(), file=sys.stderr)
    return output


def sample_molecules(folder: Path, output: Path, num_samples: int, seed: int) -> Path:
    """Sample molecules, one SMILES a line; invalid ones are left out and counted.

    The command `sample` has more options, and says what is novel.

    Args:
        folder: Export of a model of molecules.
        output: File to write, a .smi.
        num_samples: Number of samples, invalid and repeated ones included.
        seed: Seed of the samples.

    Raises:
        ValueError: if the output is no .smi.
    """
    if output.suffix != ".smi":
        raise ValueError(f"--output {output}: molecules are written as .smi")
    samples = sample_molecules_of(folder, num_samples, seed)
    valid = [sample.smiles for sample in samples if sample.smiles is not None]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(f"{smiles}\n" for smiles in valid))
    unique = len(set(valid))
    print(
        f"{num_samples:,} samples: {len(valid):,} valid molecules ({unique:,} different) in "
        f"{output}",
        file=sys.stderr,
    )
    return output
