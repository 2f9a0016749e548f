"""``python train.py chat EXPORT``: a conversation in the terminal, with streamed replies."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TextStreamer, set_seed

from triptych.commands.asked_model import AskedModel
from triptych.commands.find_export import find_export, refuse_other_kinds
from triptych.commands.options import CommandParser, add_generation_options

with suppress(ImportError):  # it lets `input` edit lines; Windows has none
    import readline  # noqa: F401

HELP = """/reset  begin a new conversation
/help   this list
/exit   end (as Ctrl-D does); Ctrl-C stops a reply"""


class Conversation:
    """The messages so far, and the model that replies.

    Args:
        model: The model.
        template: Chat template; None: each text is continued by itself, without history.
        system: System message.
        max_new_tokens: Longest reply; None: as the export says.
        temperature: 0 or None takes the most likely token each time.
    """

    def __init__(
        self,
        model: AskedModel,
        template: str | None,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self.model = model
        self.template = template
        self.system = system
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.messages: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget the messages."""
        self.messages = []

    def reply(self, text: str) -> str:
        """Reply to a message on standard output, as the reply is made, and remember both.

        Raises:
            ValueError: if the message alone fills the model's context, or the template refuses it.
        """
        kept, num_left_out, ids = self._fitting([*self.messages, {"role": "user", "content": text}])
        if num_left_out:
            note = f"(the first {num_left_out} messages no longer fit into the model's context)"
            print(note, file=sys.stderr)
        streamer: Any = _Printer(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ((reply,),) = self.model.replies(
            [ids], self.max_new_tokens, self.temperature, streamer=streamer
        )
        if self.template is not None:
            self.messages = [*kept, {"role": "assistant", "content": reply}]
        return reply

    def _fitting(
        self, messages: list[dict[str, str]]
    ) -> tuple[list[dict[str, str]], int, list[int]]:
        """Leave out the oldest turns until a reply fits; return the rest and its token ids."""
        if self.template is None:
            return messages[-1:], 0, self.model.encode_text(messages[-1]["content"])
        before = [{"role": "system", "content": self.system}] if self.system else []
        room = self.model.positions
        start = 0
        while True:
            ids = self.model.encode_chat([*before, *messages[start:]], self.template)
            needed = len(ids) + self.model.max_new_tokens(self.max_new_tokens)
            if room is None or needed <= room or start == len(messages) - 1:
                return messages[start:], start, ids
            start += 2  # a question with its reply


class _Printer(TextStreamer):
    """Prints a reply without the space that it begins with."""

    _began = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print finished words; a newline ends the reply."""
        text = text if self._began else text.lstrip()
        self._began = self._began or bool(text)
        print(text, flush=True, end="\n" if stream_end else "")


def run_chat_command(words: Sequence[str]) -> Path:
    """Read messages from standard input until its end, and reply.

    Args:
        words: The command line after ``chat``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if the export is missing.
        ValueError: if the export cannot answer.

    Returns:
        The export's folder.
    """
    parser = CommandParser(
        "chat", description="Talk with an exported model in the terminal.", epilog=HELP
    )
    add_generation_options(parser)
    options = parser.read(words)
    folder = find_export(options.export)
    refuse_other_kinds(folder, "text")
    model = AskedModel(folder, options.device)
    own = options.template if not options.raw else None
    template = None if options.raw else model.chat_template(own, training=False)
    limits = options.system, options.max_new_tokens, options.temperature
    conversation = Conversation(model, template, *limits)
    set_seed(options.seed)
    how = "continues texts, without history" if template is None else "answers"
    print(f"{options.export} {how}. /help lists commands, Ctrl-D ends.", file=sys.stderr)
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return folder
        if text == "/exit":
            return folder
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/"):
            print(HELP, file=sys.stderr)
        elif text:
            _turn(conversation, text)


def _turn(conversation: Conversation, text: str) -> None:
    try:
        conversation.reply(text)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    except ValueError as error:
        print(f"({error})", file=sys.stderr)
