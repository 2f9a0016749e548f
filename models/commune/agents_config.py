"""Options of the agents in an exchange of thoughts, and their construction."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.chat_form import ChatForm
from triptych.models.commune.agent import Agent, load_agent
from triptych.models.commune.agents import Agents
from triptych.models.gradient_checkpointing import checkpoint_blocks


@dataclass
class AgentsConfig:
    """The agents in an exchange.

    Agents that share a model and read the same prompts are one agent, unless `roles`,
    `system_prompts` or `temperatures` make them differ.

    Args:
        bases: The agents' models, from sizes or pretrained ones (by folder or hub name). A single
            entry is shared by all `num_agents` agents.
        num_agents: Number of agents if `bases` has one entry; null: the length of `bases`.
        names: Their names; null: agent 0, agent 1, ...
        dtype: Precision of the weights of pretrained models; null: that of their files.
        template_args: Values of variables of the pretrained models' chat templates, such as
            `enable_thinking: false` for Qwen3.
        system_prompt: System message of pretrained models' conversations; null: what their chat
            templates do themselves.
        system_prompts: System message of each agent, in place of `system_prompt`; null in the list:
            as the chat template does itself.
        roles: A text for each agent that follows its system message, or is one; null in the list:
            none.
        temperatures: Sampling temperature of each agent's replies, or one for all; 0: greedy.
        seed: Seed of sampled replies. An agent's reply follows from this seed, the agent's number
            and its prompt, so it is the same in every run.

    Raises:
        ValueError: if there are fewer than two agents, numbers do not agree, or a temperature is
            negative.
    """

    bases: list[BaseLMConfig] = field(default_factory=lambda: [BaseLMConfig()])
    num_agents: int | None = None
    names: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    system_prompts: list[str | None] | None = None
    roles: list[str | None] | None = None
    temperatures: list[float] | float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        total = len(self.bases) if self.num_agents is None else self.num_agents
        if len(self.bases) not in (1, total):
            raise ValueError(
                f"agents.bases has {len(self.bases)} entries for {total} agents: give one each, "
                "or one that all share"
            )
        if total < 2:
            raise ValueError(
                f"there would be {total} agent(s), an exchange needs two: set agents.num_agents "
                "to at least 2, or list more agents.bases"
            )
        given = {name: getattr(self, name) for name in ("names", "system_prompts", "roles")}
        if isinstance(self.temperatures, list):
            given["temperatures"] = self.temperatures
        for name, values in given.items():
            if values is not None and len(values) != total:
                raise ValueError(
                    f"agents.{name} has {len(values)} {name} for {total} agents: give one for each"
                )
        if self.system_prompt is not None and self.system_prompts is not None:
            raise ValueError(
                "agents.system_prompt is for all agents and agents.system_prompts for each: give "
                "one of them"
            )
        for agent in range(total):
            if not 0 <= self.temperature_of(agent) < math.inf:
                raise ValueError(
                    f"agents.temperatures has {self.temperature_of(agent)}: set it to at least 0"
                )
        if any(base.pretrained is None for base in self.bases) and (
            self.template_args or any(self.system_message_of(agent) for agent in range(total))
        ):
            raise ValueError(
                "agents.system_prompt, system_prompts, roles and template_args change a chat "
                "template, and models from sizes have none: name pretrained models "
                "(agents.bases[].pretrained), or leave them out"
            )

    @property
    def total(self) -> int:
        """Number of agents."""
        return len(self.bases) if self.num_agents is None else self.num_agents

    def temperature_of(self, agent: int) -> float:
        """Return an agent's sampling temperature."""
        given = self.temperatures
        return float(given[agent] if isinstance(given, list) else given)

    def system_message_of(self, agent: int) -> str | None:
        """Return an agent's system message, its role included; None if it has none."""
        own = self.system_prompt if self.system_prompts is None else self.system_prompts[agent]
        role = None if self.roles is None else self.roles[agent]
        parts = [part for part in (own, role) if part is not None]
        return "\n\n".join(parts) if parts else None


def build_agents(
    config: AgentsConfig,
    vocab_size: int | None = None,
    *,
    frozen: bool = True,
) -> Agents:
    """Build or load the agents; each pretrained model is loaded once.

    Args:
        config: The agents.
        vocab_size: Number of tokens of models built from sizes, which get their tokenizer later.
            Pretrained models have a tokenizer.
        frozen: Whether models built from sizes are frozen; pretrained ones always are.

    Raises:
        ValueError: if a model must be built from sizes and `vocab_size` is None.
    """
    loaded: dict[str, Any] = {}
    made: dict[str, Agent] = {}
    agents = []
    for number in range(config.total):
        place = 0 if len(config.bases) == 1 else number
        base, temperature = config.bases[place], config.temperature_of(number)
        # Greedy agents in the same form are one; samplers differ in their seeds.
        seed = config.seed + number if temperature else 0
        settings = f"{config.system_message_of(number)!r} {temperature} {seed}"
        if base.pretrained is not None:
            dtype = config.dtype or base.pretrained_dtype
            source = f"{base.pretrained} {dtype}"
            key = f"{source} {settings}"
            if key not in made:
                form = ChatForm(config.template_args, config.system_message_of(number))
                made[key] = load_agent(
                    base.pretrained, dtype, form, temperature, seed, loaded.get(source)
                )
                loaded[source] = made[key].model
            if base.gradient_checkpointing:
                checkpoint_blocks(made[key].model)
            agents.append(made[key])
            continue
        if vocab_size is None:
            raise ValueError(
                f"agents.bases[{place}] has no weights: name a pretrained model (pretrained: "
                "folder or hub name), or start from trained agents (model.init_args.init_from)"
            )
        key = f"sizes {place} {settings}"
        if key not in made:
            if str(place) not in loaded:
                loaded[str(place)] = build_base_lm(base, vocab_size)
            made[key] = Agent(loaded[str(place)], frozen=frozen, temperature=temperature, seed=seed)
        agents.append(made[key])
    return Agents(agents, config.names)
