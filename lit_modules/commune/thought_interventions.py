"""Effects of do(z_j = v) on decoded states, prefixes and replies, against the structure.

decoded state   should change where the recovered structure says that the latent matters
prefix          must change only where the latent is routed to the agent
reply           must change only where the latent is routed to the agent
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import Debate
from triptych.models.commune.thought_system import ThoughtSystem
from triptych.objectives.commune.structure.interventions import (
    EffectCheck,
    changed_share,
    check_effects,
    intervention_effects,
)

# Shapes: B questions, S = B times the number of values, Z latents, K agents, T reply positions

VALUES = (-1.5, 1.5)


@dataclass(frozen=True)
class Interventions:
    """Effects of each latent on each agent.

    Attributes:
        state_KZ: Root mean square change of the decoded state, in standard deviations.
        prefix_KZ: Root mean square change of the prefix, over that of the agent's embeddings.
        reply_KZ: Share of the replies that changed.
        relevant_KZ: bool; the recovered structure.
        routed_KZ: bool; True where the latent is sent to the agent.
    """

    state_KZ: Tensor
    prefix_KZ: Tensor
    reply_KZ: Tensor
    relevant_KZ: Tensor
    routed_KZ: Tensor

    def checks(self) -> dict[str, EffectCheck]:
        """Compare each kind of effect with the latents that should have one."""
        return {
            "state": check_effects(self.state_KZ, self.relevant_KZ),
            "prefix": check_effects(self.prefix_KZ, self.routed_KZ),
            "reply": check_effects(self.reply_KZ, self.routed_KZ),
        }

    def values(self) -> dict[str, float]:
        """Return the metrics to log, without undefined ones."""
        values = {}
        for name, check in self.checks().items():
            values[f"val/do/{name}/expected_effect"] = check.mean_expected
            values[f"val/do/{name}/largest_unexpected_effect"] = check.largest_unexpected
            values[f"val/do/{name}/ranking"] = check.ranking
        return {name: value for name, value in values.items() if value == value}

    def table(self) -> list[tuple[str, str]]:
        """Return rows for the summary table."""
        where = {"state": "relevant", "prefix": "routed", "reply": "routed"}
        return [
            (
                f"do(z): {name}, {where[name]} / not",
                f"{check.mean_expected:.3f} / {check.mean_unexpected:.3f}   "
                f"at most {check.largest_unexpected:.3g} where not   ranked {check.ranking:.3f}",
            )
            for name, check in self.checks().items()
        ]

    def report(self) -> dict[str, Any]:
        """Return everything as lists by agent and latent, for JSON."""
        return {
            "values": list(VALUES),
            **{name: tensor.tolist() for name, tensor in vars(self).items()},
        }


@torch.no_grad()
def intervene(
    system: ThoughtSystem, debate: Debate, questions: Sequence[Question], states_BH: Tensor
) -> Interventions:
    """Set every latent to a low and to a high value in the exchange after the first round.

    Args:
        system: Agents, codec and adapter.
        debate: These agents with their task.
        questions: Questions to ask.
        states_BH: The agents' states after reading the questions.
    """
    adapter = system.adapter
    assert adapter is not None
    latents_BZ = system.think(states_BH)
    asked = list(questions) * len(VALUES)

    def states(latents_SZ: Tensor) -> list[Tensor]:
        return system.codec.split(system.codec.decoder(latents_SZ))

    def send(latents_SZ: Tensor) -> list[Tensor]:
        with torch.random.fork_rng():  # the same noise, with and without an intervention
            torch.manual_seed(0)
            return system.prefixes(latents_SZ)

    def prefixes(latents_SZ: Tensor) -> list[Tensor]:
        made = send(latents_SZ)
        return [p / scale for p, scale in zip(made, adapter.scale_K, strict=True)]

    def replies(latents_SZ: Tensor) -> list[Tensor]:
        made = send(latents_SZ)
        ids = [debate.reply_ids(asked, k, None, prefix) for k, prefix in enumerate(made)]
        # Generation stops when all replies have ended, so lengths differ between calls.
        longest, pad = debate.task.max_new_tokens, [agent.pad_id for agent in debate.agents]
        return [
            F.pad(part, (0, longest - part.shape[1]), value=pad[k]) for k, part in enumerate(ids)
        ]

    effects = partial(intervention_effects, latents_BZ=latents_BZ, values=VALUES)
    return Interventions(
        effects(states),
        effects(prefixes),
        effects(replies, distance=changed_share),
        system.relevant_KZ,
        adapter.routing.routed_KZ,
    )
