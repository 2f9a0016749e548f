"""The base of probes that compare a model's replies with those at the first measurement."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import Probe, ProbeSetting
from triptych.callbacks.trainer_parts import is_first_rank
from triptych.datamodules.batches.length_batches import left_padded, length_batches
from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    encode_continuations,
    prompt_length,
)
from triptych.metrics.question_answering import answer_in_reply
from triptych.models.generation import continue_greedily
from triptych.models.long_loop import with_progress


@dataclass(frozen=True)
class Question:
    """A question to a model.

    Attributes:
        prompt: The message; in plain form, the text that the model continues.
        answers: Accepted answers; perhaps none, where only the reply's change is measured.
        kind: The number that it counts for.
        chat: Whether it is asked in the tokenizer's chat template.
    """

    prompt: str
    answers: tuple[str, ...]
    kind: str
    chat: bool

    def is_answered(self, reply: str) -> bool:
        """Return whether a reply names an accepted answer."""
        return bool(self.answers) and answer_in_reply(reply, self.answers)


class ReplyProbe(Probe):
    """Asks questions, and keeps the replies of the first measurement.

    Replies are greedy. In chat form the whole reply counts, in plain form its first line. The
    checkpoint holds the replies of the first measurement.

    Args:
        max_new_tokens: Longest reply, in tokens.
        **kwargs: Arguments of `Probe`.
    """

    def __init__(self, max_new_tokens: PositiveInt = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_new_tokens = max_new_tokens
        self.questions: list[Question] = []
        self._first: dict[int, str] = {}

    @abstractmethod
    def ask(self, setting: ProbeSetting) -> list[Question]:
        """Read the questions."""

    @abstractmethod
    def scores(self, replies: Mapping[int, str], first: Mapping[int, str]) -> dict[str, float]:
        """Score replies, by index of their question.

        Args:
            replies: Replies of the model; of all questions, unless batches are limited.
            first: Replies at the first measurement, of at least these questions.
        """

    def visible(self, text: str, question: Question) -> str:
        """Return the part of a generated text that counts as the reply."""
        return (text if question.chat else text.split("\n")[0]).strip()

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the questions; see the base class."""
        questions = self.ask(setting)
        self._tokenizer = setting.row_format.tokenizer
        # Some text has to follow: a prompt is tokenised as the beginning of a whole.
        followed = [
            [Continuation(q.prompt, "x" if q.chat else " x", ends=True, chat=q.chat)]
            for q in questions
        ]
        encoded = encode_continuations(
            self._tokenizer,
            followed,
            setting.row_format.context_length,
            self.on_long_row,
            room=self.max_new_tokens,
        )
        self.questions = [questions[item] for item in encoded.items]
        self._prompts = [document.ids[: prompt_length(document)] for document in encoded.documents]
        self.num_rows_used, self.num_rows_left_out = len(self.questions), encoded.num_left_out
        lengths = [len(prompt) + self.max_new_tokens for prompt in self._prompts]
        places = list(range(len(lengths)))
        self._batches = length_batches(lengths, places, self.tokens_per_batch, setting.shard)

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Ask all questions; see the base class."""
        replies = self._replies(model, limit_batches)
        self._first |= {index: text for index, text in replies.items() if index not in self._first}
        return self.scores(replies, self._first)

    def state_dict(self) -> dict[str, Any]:
        """Return the replies of the first measurement."""
        return {"first": dict(self._first)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the replies of the first measurement."""
        self._first = dict(state_dict["first"])

    def _replies(self, model: PreTrainedModel, limit_batches: int | None) -> dict[int, str]:
        batches = self._batches[:limit_batches]
        replies: dict[int, str] = {}
        for planned in with_progress(
            batches, "batches of questions", len(batches), is_first_rank(), False
        ):
            prompts = [self._prompts[index] for index in planned.rows]
            ids, mask = left_padded(prompts, self._tokenizer.pad_token_id)
            ids, mask = ids.to(model.device), mask.to(model.device)
            count = self.max_new_tokens
            texts = continue_greedily(model, self._tokenizer, ids, mask, count)
            if planned.counts:
                replies |= dict(zip(planned.rows, texts, strict=True))
        return {
            index: self.visible(text, self.questions[index])
            for index, text in _of_all_ranks(replies).items()
        }


def share(of: Sequence[bool]) -> float:
    """Return the share of what is true; nan of nothing."""
    return sum(of) / len(of) if of else float("nan")


def _of_all_ranks(replies: dict[int, str]) -> dict[int, str]:
    """Collect the replies of all processes, in the order of the questions."""
    distributed = torch.distributed
    parts: list[Any] = [replies]
    if distributed.is_available() and distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, replies)
    together = {index: text for part in parts for index, text in part.items()}
    return dict(sorted(together.items()))
