"""Commands on what runs leave behind: ask, chat, answer files, sample, score, teach, unlearn.

A command is a function that takes the words after its name and returns the path that it wrote or
read. Its module is imported only when it runs.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        help: One line for the list of commands.
        module: Module of the function.
        function: Its name.
    """

    help: str
    module: str
    function: str

    def __call__(self, words: Sequence[str]) -> Path:
        """Run the command with the words after its name."""
        run: Callable[[Sequence[str]], Path] = getattr(
            importlib.import_module(self.module), self.function
        )
        return run(words)


COMMANDS = {
    "ask": Command("Ask an exported model questions.", "triptych.commands.ask", "run_ask_command"),
    "chat": Command(
        "Talk with an exported model in the terminal.", "triptych.commands.chat", "run_chat_command"
    ),
    "predict": Command(
        "Answer a file of prompts or questions, or sample molecules, into a file.",
        "triptych.commands.predict",
        "run_predict_command",
    ),
    "sample": Command(
        "Sample molecules from a prior or an agent into a file.",
        "triptych.commands.sample",
        "run_sample_command",
    ),
    "score": Command(
        "Score a file of molecules into a table.",
        "triptych.commands.score",
        "run_score_command",
    ),
    "teach": Command(
        "Teach facts of a file to a model.", "triptych.commands.teach", "run_teach_command"
    ),
    "unlearn": Command(
        "Take a taught fact back.", "triptych.commands.unlearn", "run_unlearn_command"
    ),
    "ledger": Command(
        "See which fact changed which slots, and remove facts.",
        "triptych.callbacks.remember.ledger.ledger_command",
        "run_ledger_command",
    ),
    "report": Command(
        "Write report.html for a finished run or study.",
        "triptych.callbacks.report.report_command",
        "run_report_command",
    ),
}
