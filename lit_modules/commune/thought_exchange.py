"""An exchange of thoughts, as training left it: agents read, think, and reply with prefixes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import SILENCE, Debate, Messages
from triptych.models.commune.thought_system import ThoughtSystem

# Shapes: B questions, H states, Z latents


@dataclass(frozen=True)
class ThoughtExchange:
    """Puts questions to agents that exchange thoughts.

    Attributes:
        system: Agents, codec, adapter.
        debate: The agents with the task.
        rounds: Number of rounds, at least 2; the first is without thoughts.
        text_between_rounds: Agents also receive messages of the others.
    """

    system: ThoughtSystem
    debate: Debate
    rounds: int
    text_between_rounds: bool

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[list[str]]:
        """Return every agent's replies of the last round, from the questions alone."""
        states_BH = self.debate.states(questions, self.system.state)
        messages = SILENCE
        if self.text_between_rounds:
            messages = self.debate.hear(questions, self.debate.replies(questions))
        return self.replies(questions, self.system.think(states_BH), messages)

    def replies(
        self,
        questions: Sequence[Question],
        latents_BZ: Tensor,
        messages: Messages,
        change: Callable[[Tensor], Tensor] | None = lambda latents: latents,
    ) -> list[list[str]]:
        """Return every agent's replies of the last round.

        Args:
            questions: Questions to ask.
            latents_BZ: The thoughts of the first round.
            messages: Messages of the first round.
            change: Replaces the thoughts of each round, for controls; None: prefixes are zeros.
        """
        prefixes: list[Tensor] = []
        for number in range(1, self.rounds):
            prefixes = self.system.prefixes(change(latents_BZ) if change else latents_BZ)
            if change is None:
                prefixes = [torch.zeros_like(prefix) for prefix in prefixes]
            if number < self.rounds - 1:
                states_BH = self.debate.states(questions, self.system.state, prefixes, messages)
                latents_BZ = self.system.think(states_BH)
                if self.text_between_rounds:
                    said = self.debate.replies(questions, messages, prefixes)
                    messages = self.debate.hear(questions, said)
        return self.debate.replies(questions, messages, prefixes)
