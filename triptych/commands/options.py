"""Options that the commands share, and a parser that raises its errors."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

EXPORT = (
    "folder `export` of a run, the run's directory, any folder of transformers, or the name of a "
    "model on the hub"
)


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises errors instead of ending the process.

    Args:
        name: Name of the command.
        **options: Those of argparse.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self._name = name
        super().__init__(
            prog=f"train.py {name}",
            exit_on_error=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise an error with a hint at the help.

        Raises:
            argparse.ArgumentError: always.
        """
        raise argparse.ArgumentError(None, f"{message}. See python train.py {self._name} --help")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words of a command."""
        try:
            return self.parse_args([str(word) for word in words])
        except argparse.ArgumentError as error:
            if "--help" in str(error):
                raise
            self.error(str(error))


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of loading a model and generating with it."""
    parser.add_argument("export", metavar="EXPORT", help=EXPORT)
    parser.add_argument(
        "--max_new_tokens",
        type=_positive,
        help="longest answer in tokens; by default what the export says, or 256",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        help="0 (the default) gives the most likely answer; the default for several --samples is 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples; by default 0")
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without a chat template"
    )
    parser.add_argument(
        "--template",
        help="name of one of the tokenizer's chat templates, if it has several; by default "
        "`training` (how the model was asked in training) if there is one",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the best there is")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _temperature(text: str) -> float:
    if not 0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


positive_int = _positive
