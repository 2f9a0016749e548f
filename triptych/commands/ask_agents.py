"""``ask`` with an export of agents: what they reply alone, by text and by thoughts, and why."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from triptych.commands.asked_system import AskedSystem, Told
from triptych.commands.options import CommandParser

# Options of `ask` that fit language models alone.
_OF_TEXT = ("temperature", "system", "raw", "template")
_READ_AS_FILES = (".txt", ".md")


def ask_agents(
    folder: Path, questions: Sequence[str], options: argparse.Namespace, parser: CommandParser
) -> Path:
    """Print what agents reply to questions.

    Args:
        folder: Export of agents, or of an adapter of thoughts.
        questions: The questions.
        options: Those of ``ask``.
        parser: Reports wrong options.

    Raises:
        FileNotFoundError: if a file of notes is missing.
        ValueError: if the export cannot answer.

    Returns:
        The folder.
    """
    if given := [name for name in _OF_TEXT if getattr(options, name)]:
        parser.error(
            f"--{given[0]} fits a language model: agents reply in the form of their task, at their "
            "own temperature"
        )
    if options.samples > 1:
        parser.error("--samples fits a language model: each agent gives one reply")
    notes = [read_note(word) for word in options.notes or []]
    system = AskedSystem(folder, options.device)
    if options.max_new_tokens is not None:
        system.task.max_new_tokens = options.max_new_tokens
    for question in questions:
        print("\n".join(lines_of(question, system.ask(question, notes))), flush=True)
    return folder


def read_note(word: str) -> str:
    """Return a note: the content of a file, or the word itself.

    Raises:
        FileNotFoundError: if the word names a text file that does not exist.
    """
    path = Path(word)
    is_name = len(word) < 256 and "\n" not in word
    if is_name and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    if is_name and path.suffix in _READ_AS_FILES and " " not in word:
        raise FileNotFoundError(f"--notes: there is no file {word}")
    return word


def lines_of(question: str, told: Told) -> list[str]:
    """Return what is printed of the replies to a question."""
    lines = [question]
    ways = [("alone", told.alone), ("by text", told.text), ("with thoughts", told.thoughts)]
    for agent, name in enumerate(told.names):
        lines.append(f"  {name}")
        for way, replies in ways:
            if replies:
                shown = " ".join(replies[agent].split())
                lines.append(f"    {way:<14}{shown or '(nothing)'}")
    lines.append(f"  text: {told.text_bytes:,} bytes of messages")
    if told.thoughts:
        lines.append(
            f"  thoughts: {told.thought_bytes:,} bytes of latents, from {told.state_bytes:,} bytes "
            "of states"
        )
        lines += [f"    {sent}" for sent in told.sent]
    return lines
