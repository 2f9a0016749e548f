"""``python train.py ask EXPORT "question"``: answers on standard output, and nothing else."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed

from triptych.callbacks.exporting.export_kind import kind_of_export
from triptych.commands.asked_model import AskedModel
from triptych.commands.find_export import find_export, refuse_other_kinds
from triptych.commands.options import CommandParser, add_generation_options, positive_int

EPILOG = """examples:
  python train.py ask runs/quickstart/*/export "As its capital, Afghanistan has which city?"
  python train.py ask Qwen/Qwen3-0.6B "Name a fruit." --samples 5 --temperature 0.8
  python train.py ask runs/my_run --raw "The capital of France is"
  python train.py ask runs/adapter/*/export "Where is Ben?" --notes a.txt b.txt

agents: prints what each replies alone, by text and with thoughts, and who sent what. --notes has a
  note for each agent, a file or a text, where the agents' task has notes.
"""


def run_ask_command(words: Sequence[str]) -> Path:
    """Print the answers of a model to questions, one a line.

    Args:
        words: The command line after ``ask``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if the export is missing.
        ValueError: if the export cannot answer.

    Returns:
        The export's folder.
    """
    parser = CommandParser("ask", description="Ask an exported model questions.", epilog=EPILOG)
    add_generation_options(parser)
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="one or several questions")
    parser.add_argument(
        "--samples", type=positive_int, default=1, help="answers to each question; by default 1"
    )
    parser.add_argument("--notes", nargs="+", help="a note for each agent: files, or texts")
    options = parser.read(words)
    source, questions = newest_of([options.export, *options.questions])
    if not questions:
        parser.error("a question is missing")
    folder = find_export(source)
    if kind_of_export(folder) in ("agents", "thoughts"):
        from triptych.commands.ask_agents import ask_agents

        set_seed(options.seed)
        return ask_agents(folder, questions, options, parser)
    if options.notes:
        parser.error("--notes fits an export of agents: write them into the question")
    refuse_other_kinds(folder, "text")
    model = AskedModel(folder, options.device)
    template = None if options.raw else model.chat_template(options.template)
    if template is None and not options.raw:
        print("(the tokenizer has no chat template: the text is continued)", file=sys.stderr)
    set_seed(options.seed)
    for question in questions:
        if template is None:
            ids = model.encode_text(question)
        else:
            ids = model.encode_chat(as_messages(question, options.system), template)
        length, temperature = options.max_new_tokens, options.temperature
        for reply in model.replies([ids], length, temperature, options.samples)[0]:
            print(reply, flush=True)
    return folder


def newest_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into an export and questions.

    A pattern such as `runs/quickstart/*/export` may stand for several folders. The last is taken:
    runs have names that begin with the time.
    """
    is_folder = [os.path.isdir(word) for word in words]  # Path refuses long texts
    num_exports = max(1, next((i for i, one in enumerate(is_folder) if not one), len(words)))
    if num_exports > 1:
        print(f"({num_exports} folders: asking {words[num_exports - 1]})", file=sys.stderr)
    return words[num_exports - 1], list(words[num_exports:])


def as_messages(question: str, system: str | None) -> list[dict[str, str]]:
    """Write a question as a conversation.

    >>> as_messages("Name a fruit.", None)
    [{'role': 'user', 'content': 'Name a fruit.'}]
    """
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]
