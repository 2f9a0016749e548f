"""Accuracy with thoughts, without them, and with controls in their place.

thought             prefixes of the question's thoughts
no_prefix           the last round without a prefix (with messages, if there are any)
zero, constant      prefixes of zeros; prefixes of the mean thought
shuffled            every question with the thoughts of another question

These are measured beside the conditions of `debate_evaluation`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import SILENCE, Debate
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
from triptych.lit_modules.commune.thought_exchange import ThoughtExchange
from triptych.metrics.commune.leakage_probe import probe_accuracy
from triptych.models.commune.thought_system import ThoughtSystem

# Shapes: B questions, N questions to fit on, H states, Z latents, M prefix tokens, D width

BYTES_PER_NUMBER = 4


class ThoughtEvaluation(DebateEvaluation):
    """Counts of a validation epoch, with and without thoughts.

    Args:
        system: Agents, codec, adapter.
        debate: The agents with the task.
        rounds: As in training.
        text_between_rounds: As in training.
        text_budgets: Message lengths to compare, in words, beside whole messages.

    Attributes:
        samples: Rows for the table of samples.
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
        self.exchange = ThoughtExchange(system, debate, rounds, text_between_rounds)
        self.samples: list[dict[str, Any]] = []
        super().__init__(debate, rounds, text_budgets)

    def reset(self) -> None:
        """Start an epoch."""
        super().reset()
        self.samples = []

    @torch.no_grad()
    def add(self, questions: Sequence[Question], states_BH: Tensor) -> None:
        """Put questions to the agents under every condition, and count."""
        debate = self.debate
        alone = self.debate_by_text(questions)
        messages = debate.hear(questions, alone) if self.exchange.text_between_rounds else SILENCE
        self.count("no_prefix", questions, debate.replies(questions, messages))
        latents_BZ = self.system.think(states_BH)
        for name, change in (
            ("thought", lambda latents: latents),
            ("constant", lambda latents: latents.mean(0, keepdim=True).expand_as(latents)),
            ("shuffled", lambda latents: latents.roll(1, 0)),
            ("zero", None),
        ):
            replies = self.exchange.replies(questions, latents_BZ, messages, change)
            self.count(name, questions, replies)
            if name == "thought":
                self._sample(questions, alone, replies)
        routed = self.system.adapter.routing.routed_KZ.sum() if self.system.adapter else 0
        self.sent_bytes["thought"] += int(
            routed * BYTES_PER_NUMBER * len(questions) * (self.rounds - 1)
        )

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
                        "evidence": str(questions[number].evidence_of(agent)),
                        "expected": questions[number].answer_of(agent),
                        "alone": alone[agent][number],
                        "with thoughts": of_agent[number],
                    }
                )

    @torch.no_grad()
    def probe(
        self,
        latents_NZ: Tensor,
        private_NK: Sequence[Sequence[int]],
        held_out_BZ: Tensor,
        held_out_private_BK: Sequence[Sequence[int]],
    ) -> dict[str, float]:
        """Return the mean accuracy of probes that read others' private evidence from thoughts."""
        adapter = self.system.adapter
        assert adapter is not None
        num_classes = self.debate.task.num_private_classes
        label_NK = torch.tensor(private_NK, device=latents_NZ.device, dtype=torch.int64)
        held_out_label_BK = torch.tensor(
            held_out_private_BK, device=latents_NZ.device, dtype=torch.int64
        )
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
        """Return the rows of the summary table."""
        rows = super().table(values)
        chance = self.debate.task.num_private_classes
        for kind in ("linear", "nonlinear"):
            if (value := values.get(f"val/leakage/{kind}_probe_accuracy")) is not None:
                text = f"{value:.3f}   chance {1 / chance:.3f}"
                rows.append((f"others' private evidence, {kind} probe", text))
        return rows
