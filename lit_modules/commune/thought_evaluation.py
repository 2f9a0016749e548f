"""Accuracy with thoughts, without them, and with controls in their place.

thought             prefixes of the question's thoughts
no_prefix           the last round without a prefix (with messages, if there are any)
zero, constant      prefixes of zeros; prefixes of the mean thought
shuffled            every question with the thoughts of another question

These are measured beside the conditions of `debate_evaluation`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import SILENCE, Debate
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
from triptych.lit_modules.commune.thought_exchange import ThoughtExchange
from triptych.metrics.commune.leakage_probe import ProbeFamily, family_accuracies
from triptych.metrics.commune.probe_power import (
    LEAKS,
    ProbePower,
    mean_accuracies,
    probe_power,
)
from triptych.models.commune.thought_system import ThoughtSystem

# Shapes: B questions, N questions to fit on, H states, Z latents, M prefix tokens, D width

BYTES_PER_NUMBER = 4
# Names of the families in keys of the log.
_NAMES: dict[ProbeFamily, str] = {"linear": "linear", "lda": "lda", "network": "nonlinear"}


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
        powers: What probes find of leaks that are planted into each agent's messages.
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
        self.powers: list[ProbePower] = []
        super().__init__(debate, rounds, text_budgets)

    def reset(self) -> None:
        """Start an epoch."""
        super().reset()
        self.samples = []
        self.num_timed = self.latent_bytes = 0

    def compute(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Compute the conditions' values, and what thoughts cost apart from the replies."""
        values = super().compute(reduce_sum)
        seconds = self.seconds["reading"]
        parts = [self.latent_bytes, self.num_questions, seconds, self.num_timed]
        sums = reduce_sum(torch.tensor(parts, dtype=torch.float32)).tolist()
        latent_bytes, num_questions, seconds, num_timed = sums
        values["val/thought/latent_bytes_per_question"] = latent_bytes / num_questions
        if num_timed:
            reading = 1000 * seconds / num_timed
            values["val/thought/state_milliseconds_per_question"] = reading
            values["val/thought/milliseconds_per_question"] += reading
        return values

    @torch.no_grad()
    def add(self, questions: Sequence[Question], states_BH: Tensor) -> None:
        """Put questions to the agents under every condition, and count."""
        debate = self.debate
        alone = self.debate_by_text(questions)
        messages = debate.hear(questions, alone) if self.exchange.text_between_rounds else SILENCE
        self.count("no_prefix", questions, debate.replies(questions, messages))
        with self.timed("thought"):
            latents_BZ = self.system.think(states_BH)
        if not self.num_timed:  # states are cached, so reading them is timed once
            with self.timed("reading"):
                debate.states(questions, self.system.state)
            self.num_timed = len(questions)
        for name, change in (
            ("thought", lambda latents: latents),
            ("constant", lambda latents: latents.mean(0, keepdim=True).expand_as(latents)),
            ("shuffled", lambda latents: latents.roll(1, 0)),
            ("zero", None),
        ):
            with self.timed(name):
                replies = self.exchange.replies(questions, latents_BZ, messages, change)
            self.count(name, questions, replies)
            if name == "thought":
                self._sample(questions, alone, replies)
        routed = self.system.adapter.routing.routed_KZ.sum() if self.system.adapter else 0
        exchanges = BYTES_PER_NUMBER * len(questions) * (self.rounds - 1)
        self.latent_bytes += int(routed) * exchanges
        # The encoder reads every agent's state, which must reach it first.
        states = sum(self.system.codec.state_sizes)
        self.sent_bytes["thought"] += (int(routed) + states) * exchanges

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
        """Return the mean accuracy of probes that read others' private evidence from thoughts.

        Planted leaks of known size are read back from the same messages (`metrics.commune.
        probe_power`), to tell a private message from a probe that would not see a leak.
        """
        adapter = self.system.adapter
        assert adapter is not None
        num_classes = self.debate.task.num_private_classes
        label_NK = torch.tensor(private_NK, device=latents_NZ.device, dtype=torch.int64)
        held_out_label_BK = torch.tensor(
            held_out_private_BK, device=latents_NZ.device, dtype=torch.int64
        )
        found: list[dict[ProbeFamily, float]] = []
        powers: list[ProbePower] = []
        for agent in range(len(self.debate.agents)):
            message_NR = adapter.routing(latents_NZ, agent)
            held_out_BR = adapter.routing(held_out_BZ, agent)
            powers.append(probe_power(message_NR, held_out_BR, num_classes))
            for other in range(len(self.debate.agents)):
                if other != agent:
                    samples = (message_NR, label_NK[:, other])
                    held_out = (held_out_BR, held_out_label_BK[:, other])
                    found.append(family_accuracies(*samples, *held_out, num_classes))
        self.powers = powers
        values = {
            f"val/leakage/{_NAMES[family]}_probe_accuracy": accuracy
            for family, accuracy in mean_accuracies(found).items()
        }
        for leak in LEAKS:
            planted = mean_accuracies([power.found[leak] for power in powers])
            oracle = sum(power.oracle[leak] for power in powers) / len(powers)
            values[f"val/leakage/planted_{leak}_accuracy"] = oracle
            values[f"val/leakage/found_{leak}_accuracy"] = max(planted.values())
        return values

    def table(self, values: dict[str, float]) -> list[tuple[str, str]]:
        """Return the rows of the summary table."""
        rows = super().table(values)
        chance = self.debate.task.num_private_classes
        for kind in _NAMES.values():
            if (value := values.get(f"val/leakage/{kind}_probe_accuracy")) is not None:
                text = f"{value:.3f}   chance {1 / chance:.3f}"
                rows.append((f"others' private evidence, {kind} probe", text))
        for agent, power in enumerate(self.powers):
            rows.append((f"planted leaks, {self.debate.agents.names[agent]}", power.describe()))
        return rows
