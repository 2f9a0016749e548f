"""What a debate by text is worth: accuracy, consensus and bytes, alone and with messages.

single      what agents manage alone
majority    each agent takes the answer that most gave alone
text_*      a debate with messages of so many words, or whole ones
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import Debate

Messages = list[list[list[str]]]


class DebateEvaluation:
    """Collects a validation epoch.

    Args:
        debate: Agents and their task.
        rounds: 2 or more, the first without messages.
        text_budgets: Words of each message, beside whole ones.
    """

    def __init__(self, debate: Debate, rounds: int, text_budgets: Sequence[int]) -> None:
        self.debate = debate
        self.rounds = rounds
        self.budgets: list[int | None] = [*text_budgets, None]
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.right: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.num_replies = self.num_questions = 0

    def debate_by_text(self, questions: Sequence[Question]) -> list[list[str]]:
        """Ask some questions alone and in debates; returns what the agents say alone."""
        debate = self.debate
        self.num_questions += len(questions)
        self.num_replies += len(questions) * len(debate.agents)
        alone = debate.replies(questions)
        self.count("single", questions, alone)
        self.count("majority", questions, self.majority(alone))
        for budget in self.budgets:
            name = "text_full" if budget is None else f"text_{budget}"
            replies = alone
            for _ in range(self.rounds - 1):
                heard = debate.hear(questions, replies, budget)
                self.sent_bytes[name] += _text_bytes(heard)
                replies = debate.replies(questions, heard)
            self.count(name, questions, replies)
        return alone

    def majority(self, replies: Sequence[Sequence[str]]) -> list[list[str]]:
        """Every agent says what most answered; the first agent's answer among equals."""
        chosen = []
        for of_question in zip(*replies, strict=True):
            answers = [self.debate.task.read_answer(reply) for reply in of_question]
            known = Counter(answer for answer in answers if answer is not None)
            best = known.most_common(1)[0][0] if known else None
            chosen.append(of_question[answers.index(best)] if known else of_question[0])
        return [list(chosen) for _ in replies]

    def count(
        self, name: str, questions: Sequence[Question], replies: Sequence[Sequence[str]]
    ) -> None:
        """Count what was right, and on how many questions all agents agree."""
        self.right[name] += self.debate.correct(questions, replies)[0]
        read = self.debate.task.read_answer
        for of_question in zip(*replies, strict=True):
            answers = {read(reply) for reply in of_question}
            self.agreed[name] += len(answers) == 1 and None not in answers

    def compute(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Accuracy and consensus of each condition, and bytes sent a question.

        Args:
            reduce_sum: Adds counts over processes.
        """
        names = list(self.right)
        counts = torch.tensor(
            [self.right[n] for n in names]
            + [self.agreed[n] for n in names]
            + [self.sent_bytes[n] for n in names]
            + [self.num_replies, self.num_questions],
            dtype=torch.float32,
        )
        *totals, num_replies, num_questions = reduce_sum(counts).tolist()
        right, agreed, sent = (
            totals[: len(names)],
            totals[len(names) : 2 * len(names)],
            totals[2 * len(names) :],
        )
        values = {}
        for place, name in enumerate(names):
            values[f"val/{name}/accuracy"] = right[place] / num_replies
            values[f"val/{name}/consensus"] = agreed[place] / num_questions
            if sent[place]:
                values[f"val/{name}/bytes_per_question"] = sent[place] / num_questions
        return values

    def table(self, values: dict[str, float]) -> list[tuple[str, str]]:
        """The rows of the table at the end."""
        rows = []
        for name in self.right:
            text = f"{values[f'val/{name}/accuracy']:.3f}"
            text += f"   consensus {values[f'val/{name}/consensus']:.3f}"
            if (sent := values.get(f"val/{name}/bytes_per_question")) is not None:
                text += f"   {sent:,.0f} bytes"
            rows.append((f"accuracy: {name.replace('_', ' ')}", text))
        return rows


def _text_bytes(heard: Messages) -> int:
    return sum(len(text.encode()) for of_agent in heard for said in of_agent for text in said)
