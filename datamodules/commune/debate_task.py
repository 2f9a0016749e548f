"""What agents are asked: the seam between a debate and whatever it is about."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Question:
    """One thing that all agents are asked, each perhaps with evidence of its own.

    Attributes:
        answers: The right answer of each agent, as `read_answer` gives it.
        evidence: What each agent is told; what else belongs to it is the task's own business.
        private: Of each agent a class that the others should not learn; empty: there is none. For
            probes of leakage.
    """

    answers: list[str]
    evidence: list[Any]
    private: list[int] = field(default_factory=list)


class DebateTask(ABC):
    """Questions, how they are put to an agent, and how its reply is read.

    Attributes:
        num_agents: How many it is made for; None: any number.
        num_private_classes: Classes of `Question.private`; 0: there is nothing private.
        tokenizer: Of agents that are trained on it from scratch; None: they bring their own.
        max_new_tokens: Longest reply.
        report_classes: Classes of each thing that an agent sees, which agents that are trained
            from scratch learn to keep in their state; empty: nothing is known of it.
    """

    num_agents: int | None = None
    num_private_classes: int = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    max_new_tokens: int = 256
    report_classes: Sequence[int] = ()

    @abstractmethod
    def questions(self, split: Split) -> list[Question]:
        """The questions of a split, always the same."""

    @abstractmethod
    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Token ids of the prompts.

        Args:
            tokenizer: The agent's.
            questions: What to ask.
            agent: Who is asked.
            messages: Of each question what the others said, in their order; None: nothing.
        """

    @abstractmethod
    def read_answer(self, reply: str) -> str | None:
        """The answer that a reply gives, in its normal form; None: it gives none."""

    @abstractmethod
    def messages(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        agent: int,
        max_tokens: int | None = None,
    ) -> list[list[str]]:
        """What an agent hears from the others in a debate by text.

        Args:
            questions: What was asked.
            replies: Each agent's replies to them in the round before.
            agent: Who hears it.
            max_tokens: Of each message; None: the whole.
        """

    def report(self, question: Question, agent: int) -> list[int]:
        """The class of each thing that the agent sees; see `report_classes`."""
        return []

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Hash of everything that the first prompts of a split depend on."""

    def reference_replies(self, questions: Sequence[Question], agent: int) -> list[str] | None:
        """Replies to learn from that the task knows by itself; None: it knows none."""
        return None
