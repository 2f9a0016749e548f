"""The seam between a debate and its subject: questions, prompts, and reading of replies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from triptych.datamodules.sources.records import RecordSource

Split = Literal["train", "val", "test"]
Found = TypeVar("Found", bound=Sized)


@dataclass(frozen=True)
class Question:
    """One question to all agents; each agent may have evidence that the others lack.

    Attributes:
        answers: The right answer of each agent, in the form of `read_answer`. A single entry holds
            for every agent. Empty if the answers are unknown, as in questions of a user's file.
        evidence: The text or data that each agent sees; its type is up to the task. A single entry
            is seen by every agent.
        private: For each agent a class that the others should not learn; empty if nothing is
            private. Leakage probes predict it.
    """

    answers: Sequence[str]
    evidence: Sequence[Any]
    private: Sequence[int] = field(default_factory=list)

    def answer_of(self, agent: int) -> str:
        """Return an agent's right answer.

        >>> Question(["7"], ["3 + 4?"]).answer_of(2)
        '7'
        """
        return self.answers[0] if len(self.answers) == 1 else self.answers[agent]

    def evidence_of(self, agent: int) -> Any:
        """Return the evidence that an agent sees."""
        return self.evidence[0] if len(self.evidence) == 1 else self.evidence[agent]


class DebateTask(ABC):
    """Questions, their prompts, and the reading of replies.

    Attributes:
        num_agents: Number of agents that the task is made for; None: any number.
        num_private_classes: Number of classes in `Question.private`; 0 if nothing is private.
        tokenizer: Tokenizer for agents that are trained on the task from scratch; None: agents
            bring their own.
        max_new_tokens: Longest reply.
        report_classes: Number of classes of each item that an agent sees. Agents that are trained
            from scratch learn to keep these items in their state. Empty if there are none.
    """

    num_agents: int | None = None
    num_private_classes: int = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    max_new_tokens: int = 256
    report_classes: Sequence[int] = ()

    @abstractmethod
    def questions(self, split: Split) -> list[Question]:
        """Return the questions of a split, the same at every call."""

    def read_questions(self, source: RecordSource) -> list[Question] | None:
        """Read the questions of a file to be answered, one for each row, in their order.

        `predict` calls it. `Question.answers` is empty where a row states no answer.

        Args:
            source: The file. Rows have the task's own names of fields.

        Returns:
            The questions; None (the default): the task makes its questions and reads no file.

        Raises:
            ValueError: if a row is malformed.
        """
        return None

    def ask(self, question: str, notes: Sequence[str]) -> Question | None:
        """Make a question that a user asks by hand; `ask` calls it.

        Args:
            question: The question.
            notes: A note for each agent; empty: none.

        Returns:
            The question; None (the default): the task makes its questions.

        Raises:
            ValueError: if the notes do not fit the task.
        """
        return None

    @abstractmethod
    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Return the token ids of an agent's prompts, one prompt for each question.

        Args:
            tokenizer: The agent's tokenizer.
            questions: Questions to ask.
            agent: Number of the agent.
            messages: For each question the messages of the others, in the order of agents; None: a
                round without messages.
        """

    @abstractmethod
    def read_answer(self, reply: str) -> str | None:
        """Return the answer in a reply, in normal form; None if it gives none."""

    @abstractmethod
    def messages(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        agent: int,
        max_tokens: int | None = None,
    ) -> list[list[str]]:
        """Return the messages that an agent receives in a debate by text, a list per question.

        Args:
            questions: Questions that were asked.
            replies: `replies[k][i]` is the reply of agent k to question i in the round before.
                While agents are trained from scratch, their reference replies stand here.
            agent: Number of the agent that receives the messages.
            max_tokens: Longest message; None: no limit.
        """

    def report(self, question: Question, agent: int) -> list[int]:
        """Return the class of each item that the agent sees; see `report_classes`."""
        return []

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Return a hash of everything that the first prompts of a split depend on."""

    def reference_replies(self, questions: Sequence[Question], agent: int) -> list[str] | None:
        """Return replies to learn from, one for each question.

        None: the task knows no replies of this agent, to any question. Such an agent is not taught
        by `AgentPretraining`, and not accepted by `ThoughtAdapter` with `reference: task`.
        """
        return None


def one_per_question(
    task: DebateTask, method: str, found: Found, questions: Sequence[Question]
) -> Found:
    """Return what a method of a task returned, if it has one entry for each question.

    Args:
        task: The task, for the message.
        method: Name of the method, for the message.
        found: The returned list.
        questions: The questions that it belongs to.

    Raises:
        ValueError: if the lengths differ; replies and prompts would be paired wrongly.
    """
    if len(found) != len(questions):
        raise ValueError(
            f"{type(task).__name__}.{method} returned {len(found)} entries for {len(questions)} "
            "questions: return a list with one entry for each question, in their order"
        )
    return found
