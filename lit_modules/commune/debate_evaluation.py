"""Accuracy, consensus and bytes of debates by text.

single      agents alone, without messages
majority    every agent takes the most frequent of the answers that they gave alone; left out where
            agents have right answers of their own, since they do not vote on one thing
kv          every agent reads the others' KV caches of their first prompts, if asked for
text_*      a debate with messages of a limited number of words, or whole ones (text_full)
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.lit_modules.commune.debate import Debate


class DebateEvaluation:
    """Counts of a validation epoch.

    Args:
        debate: Agents and their task.
        rounds: Number of rounds, at least 2; the first is without messages.
        text_budgets: Message lengths to compare, in words, beside whole messages.

    Attributes:
        with_caches: Whether to count replies with the others' KV caches (`kv`).
    """

    with_caches = False

    def __init__(self, debate: Debate, rounds: int, text_budgets: Sequence[int]) -> None:
        self.debate = debate
        self.rounds = rounds
        self.budgets: list[int | None] = [*text_budgets, None]
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self.right: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.last_seconds = 0.0
        self.num_replies = self.num_questions = self.num_own_answers = 0

    def debate_by_text(self, questions: Sequence[Question]) -> list[list[str]]:
        """Count replies alone and in debates; return the replies alone."""
        debate = self.debate
        self.num_questions += len(questions)
        self.num_replies += len(questions) * len(debate.agents)
        self.num_own_answers += sum(map(has_own_answers, questions))
        with self.timed("single"):
            alone = debate.replies(questions)
        seconds_alone = self.last_seconds
        self.count("single", questions, alone)
        self.count("majority", questions, self.majority(alone))
        if self.with_caches:
            with self.timed("kv"):
                replies, num_bytes = debate.replies_with_caches(questions)
            self.sent_bytes["kv"] += num_bytes
            self.count("kv", questions, replies)
        for budget in self.budgets:
            name = "text_full" if budget is None else f"text_{budget}"
            with self.timed(name):
                replies, heard = debate.talk(questions, alone, self.rounds - 1, budget)
            self.seconds[name] += seconds_alone  # a debate begins with replies without messages
            self.sent_bytes[name] += sum(messages.num_bytes for messages in heard)
            self.count(name, questions, replies)
        return alone

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to a condition; replies are text, so devices are done."""
        begin = time.perf_counter()
        yield
        self.last_seconds = time.perf_counter() - begin
        self.seconds[name] += self.last_seconds

    def majority(self, replies: Sequence[Sequence[str]]) -> list[list[str]]:
        """Replace every reply by one with the most frequent answer; in a tie, the first agent's."""
        chosen = majority_replies(self.debate.task, replies)
        return [list(chosen) for _ in replies]

    def count(
        self, name: str, questions: Sequence[Question], replies: Sequence[Sequence[str]]
    ) -> None:
        """Count right replies, and questions on which all agents agree."""
        self.right[name] += self.debate.correct(questions, replies)[0]
        agreed = common_answers(self.debate.task, replies)
        self.agreed[name] += sum(answer is not None for answer in agreed)

    def compute(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Compute accuracy, consensus, bytes and milliseconds per question of each condition.

        Args:
            reduce_sum: Sum of a tensor over all processes.
        """
        names = list(self.right)
        counts = torch.tensor(
            [self.right[n] for n in names]
            + [self.agreed[n] for n in names]
            + [self.sent_bytes[n] for n in names]
            + [self.seconds[n] for n in names]
            + [self.num_replies, self.num_questions, self.num_own_answers],
            dtype=torch.float32,
        )
        *totals, num_replies, num_questions, num_own = reduce_sum(counts).tolist()
        size = len(names)
        right, agreed, sent, seconds = (totals[size * i : size * (i + 1)] for i in range(4))
        values = {}
        for place, name in enumerate(names):
            if name == "majority" and num_own:
                continue
            values[f"val/{name}/accuracy"] = right[place] / num_replies
            values[f"val/{name}/consensus"] = agreed[place] / num_questions
            if sent[place]:
                values[f"val/{name}/bytes_per_question"] = sent[place] / num_questions
            if seconds[place]:
                milliseconds = 1000 * seconds[place] / num_questions
                values[f"val/{name}/milliseconds_per_question"] = milliseconds
        return values

    def table(self, values: dict[str, float]) -> list[tuple[str, str]]:
        """Return the rows of the summary table."""
        rows = []
        for name in self.right:
            if f"val/{name}/accuracy" not in values:
                continue
            text = f"{values[f'val/{name}/accuracy']:.3f}"
            text += f"   consensus {values[f'val/{name}/consensus']:.3f}"
            if (sent := values.get(f"val/{name}/bytes_per_question")) is not None:
                text += f"   {sent:,.0f} bytes"
            if (taken := values.get(f"val/{name}/milliseconds_per_question")) is not None:
                text += f"   {taken:,.1f} ms"
            rows.append((f"accuracy: {name.replace('_', ' ')}", text))
        return rows


def has_own_answers(question: Question) -> bool:
    """Tell whether agents have different right answers, so that a majority means nothing.

    >>> has_own_answers(Question(["7"], ["3 + 4?"])), has_own_answers(Question(["7", "8"], ["?"]))
    (False, True)
    """
    return len(set(question.answers)) > 1


def majority_replies(task: DebateTask, replies: Sequence[Sequence[str]]) -> list[str]:
    """Return for each question a reply with the most frequent answer; in a tie, the first agent's.

    If no reply has an answer, it is the first agent's reply.

    Args:
        task: Reads the answers.
        replies: Every agent's replies.
    """
    chosen = []
    for of_question in zip(*replies, strict=True):
        answers = [task.read_answer(reply) for reply in of_question]
        known = Counter(answer for answer in answers if answer is not None)
        best = known.most_common(1)[0][0] if known else None
        chosen.append(of_question[answers.index(best)] if known else of_question[0])
    return chosen


def common_answers(task: DebateTask, replies: Sequence[Sequence[str]]) -> list[str | None]:
    """Return for each question the answer that all agents give; None where they differ.

    Args:
        task: Reads the answers.
        replies: Every agent's replies.
    """
    found = []
    for of_question in zip(*replies, strict=True):
        answers = {task.read_answer(reply) for reply in of_question}
        found.append(answers.pop() if len(answers) == 1 else None)
    return found
