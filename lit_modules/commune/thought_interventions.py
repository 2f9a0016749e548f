"""do(z_j = v) on trained agents: decoded states, prefixes and replies, against the structure.

decoded state   should move where the recovered structure says that the latent matters
prefix          must move only where the latent is routed to the agent
reply           likewise
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

# Shapes: B questions, S questions once for every value, Z latents, K agents, T reply positions

VALUES = (-1.5, 1.5)


@dataclass(frozen=True)
class Interventions:
    """What moved.

    Attributes:
        state_KZ: Root mean square move of each agent's decoded state, in standard deviations.
        prefix_KZ: Of its prefix, in root mean squares of its embeddings.
        reply_KZ: Share of its replies that changed.
        relevant_KZ: bool; the structure.
        routed_KZ: bool; what each agent is sent.
    """

    state_KZ: Tensor
    prefix_KZ: Tensor
    reply_KZ: Tensor
    relevant_KZ: Tensor
    routed_KZ: Tensor

    def checks(self) -> dict[str, EffectCheck]:
        """Each kind of effect against what should have one."""
        return {
            "state": check_effects(self.state_KZ, self.relevant_KZ),
            "prefix": check_effects(self.prefix_KZ, self.routed_KZ),
            "reply": check_effects(self.reply_KZ, self.routed_KZ),
        }

    def values(self) -> dict[str, float]:
        """To be logged; what is not defined is left out."""
        values = {}
        for name, check in self.checks().items():
            values[f"val/do/{name}/expected_effect"] = check.mean_expected
            values[f"val/do/{name}/largest_unexpected_effect"] = check.largest_unexpected
            values[f"val/do/{name}/ranking"] = check.ranking
        return {name: value for name, value in values.items() if value == value}

    def table(self) -> list[tuple[str, str]]:
        """Rows for the table at the end."""
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
        """Everything as lists, by agent and latent."""
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
        debate: Of these agents.
        questions: What they are asked.
        states_BH: Their states on reading it.
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
        # generation stops when all replies have ended, sooner or later
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
