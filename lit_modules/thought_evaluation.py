"""What thoughts are worth: accuracy with them, without them, and with thoughts that are not theirs.

single, text_*      what agents manage alone, and in a debate by text
majority            each agent takes the answer that most gave alone
thought             the real thing
no_prefix           the last round without a prefix (with what was heard, if anything)
zero, constant      prefixes of zeros; of the mean thought
shuffled            every question with the thoughts of another one
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.debate_task import Question
from lit_modules.debate import Debate
from metrics.leakage_probe import probe_accuracy
from models.thought_system import ThoughtSystem

# Shapes: B questions, N questions to fit on, H states, Z latents, M prefix tokens, D width

BYTES_PER_NUMBER = 4
Messages = list[list[list[str]]]


class ThoughtEvaluation:
    """Collects a validation epoch.

    Args:
        system: Agents, codec, adapter.
        debate: That asks them.
        rounds: As in training.
        text_between_rounds: As in training.
        text_budgets: Words of each message, beside whole ones.

    Attributes:
        samples: Rows of a table.
    """

    def __init__(
        self,
        system: ThoughtSystem,
        debate: Debate,
        rounds: int,
        text_between_rounds: bool,
        text_budgets: Sequence[int],
    ) -> None:
        self.system = system
        self.debate = debate
        self.rounds = rounds
        self.text_between_rounds = text_between_rounds
        self.budgets: list[int | None] = [*text_budgets, None]
        self.samples: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.right: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.num_replies = self.num_questions = 0
        self.samples = []

    @torch.no_grad()
    def add(self, questions: Sequence[Question], states_BH: Tensor) -> None:
        """Ask some questions under every condition."""
        debate = self.debate
        self.num_questions += len(questions)
        self.num_replies += len(questions) * len(debate.agents)
        alone = debate.replies(questions)
        self._count("single", questions, alone)
        self._count("majority", questions, self._majority(alone))
        for budget in self.budgets:
            name = "text_full" if budget is None else f"text_{budget}"
            replies = alone
            for _ in range(self.rounds - 1):
                heard = debate.hear(questions, replies, budget)
                self.sent_bytes[name] += _text_bytes(heard)
                replies = debate.replies(questions, heard)
            self._count(name, questions, replies)
        messages = debate.hear(questions, alone) if self.text_between_rounds else None
        self._count("no_prefix", questions, debate.replies(questions, messages))
        latents_BZ = self.system.think(states_BH)
        for name, change in (
            ("thought", lambda latents: latents),
            ("constant", lambda latents: latents.mean(0, keepdim=True).expand_as(latents)),
            ("shuffled", lambda latents: latents.roll(1, 0)),
            ("zero", None),
        ):
            replies = self._with_thoughts(questions, latents_BZ, messages, change)
            self._count(name, questions, replies)
            if name == "thought":
                self._sample(questions, alone, replies)
        routed = self.system.adapter.routing.routed_KZ.sum() if self.system.adapter else 0
        self.sent_bytes["thought"] += int(
            routed * BYTES_PER_NUMBER * len(questions) * (self.rounds - 1)
        )

    def _with_thoughts(
        self,
        questions: Sequence[Question],
        latents_BZ: Tensor,
        messages: Messages | None,
        change: Callable[[Tensor], Tensor] | None,
    ) -> list[list[str]]:
        """Replies of the last round; None as a change: prefixes of zeros."""
        prefixes: list[Tensor] = []
        for number in range(1, self.rounds):
            prefixes = self.system.prefixes(change(latents_BZ) if change else latents_BZ)
            if change is None:
                prefixes = [torch.zeros_like(prefix) for prefix in prefixes]
            if number < self.rounds - 1:
                states_BH = self.debate.states(questions, self.system.state, prefixes, messages)
                latents_BZ = self.system.think(states_BH)
                if messages is not None:
                    said = self.debate.replies(questions, messages, prefixes)
                    messages = self.debate.hear(questions, said)
        return self.debate.replies(questions, messages, prefixes)

    def _majority(self, replies: Sequence[Sequence[str]]) -> list[list[str]]:
        """Every agent says what most answered; the first agent's answer among equals."""
        chosen = []
        for of_question in zip(*replies, strict=True):
            answers = [self.debate.task.read_answer(reply) for reply in of_question]
            known = Counter(answer for answer in answers if answer is not None)
            best = known.most_common(1)[0][0] if known else None
            chosen.append(of_question[answers.index(best)] if known else of_question[0])
        return [list(chosen) for _ in replies]

    def _count(
        self, name: str, questions: Sequence[Question], replies: Sequence[Sequence[str]]
    ) -> None:
        self.right[name] += self.debate.correct(questions, replies)[0]
        read = self.debate.task.read_answer
        for of_question in zip(*replies, strict=True):
            answers = {read(reply) for reply in of_question}
            self.agreed[name] += len(answers) == 1 and None not in answers

    def _sample(
        self,
        questions: Sequence[Question],
        alone: Sequence[Sequence[str]],
        replies: Sequence[Sequence[str]],
    ) -> None:
        for number in range(min(len(questions), 16 - len(self.samples) // len(replies))):
            for agent, of_agent in enumerate(replies):
                self.samples.append(
                    {
                        "agent": self.debate.agents.names[agent],
                        "evidence": str(questions[number].evidence[agent]),
                        "expected": questions[number].answers[agent],
                        "alone": alone[agent][number],
                        "with thoughts": of_agent[number],
                    }
                )

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

    @torch.no_grad()
    def probe(
        self,
        latents_NZ: Tensor,
        private_NK: Sequence[Sequence[int]],
        held_out_BZ: Tensor,
        held_out_private_BK: Sequence[Sequence[int]],
    ) -> dict[str, float]:
        """What an agent's thoughts give away of each other agent's private evidence, on average."""
        adapter = self.system.adapter
        assert adapter is not None
        num_classes = self.debate.task.num_private_classes
        label_NK = torch.tensor(private_NK, device=latents_NZ.device)
        held_out_label_BK = torch.tensor(held_out_private_BK, device=latents_NZ.device)
        found: dict[str, list[float]] = {"linear": [], "nonlinear": []}
        for agent in range(len(self.debate.agents)):
            message_NR = adapter.routing(latents_NZ, agent)
            held_out_BR = adapter.routing(held_out_BZ, agent)
            for other in range(len(self.debate.agents)):
                if other == agent:
                    continue
                for name, hidden in (("linear", None), ("nonlinear", 64)):
                    found[name].append(
                        probe_accuracy(
                            message_NR,
                            label_NK[:, other],
                            held_out_BR,
                            held_out_label_BK[:, other],
                            num_classes,
                            hidden,
                        )
                    )
        return {
            f"val/leakage/{name}_probe_accuracy": sum(values) / len(values)
            for name, values in found.items()
        }

    def table(self, values: dict[str, float]) -> list[tuple[str, str]]:
        """The rows of the table at the end."""
        rows = []
        for name in self.right:
            text = f"{values[f'val/{name}/accuracy']:.3f}"
            text += f"   consensus {values[f'val/{name}/consensus']:.3f}"
            if (sent := values.get(f"val/{name}/bytes_per_question")) is not None:
                text += f"   {sent:,.0f} bytes"
            rows.append((f"accuracy: {name.replace('_', ' ')}", text))
        chance = self.debate.task.num_private_classes
        for kind in ("linear", "nonlinear"):
            if (value := values.get(f"val/leakage/{kind}_probe_accuracy")) is not None:
                text = f"{value:.3f}   chance {1 / chance:.3f}"
                rows.append((f"others' private evidence, {kind} probe", text))
        return rows


def _text_bytes(heard: Messages) -> int:
    return sum(len(text.encode()) for of_agent in heard for said in of_agent for text in said)
