"""Options of the agents in an exchange of thoughts, and their construction."""

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

    Raises:
        ValueError: if there are fewer than two agents, or numbers do not agree.
    """

    bases: list[BaseLMConfig] = field(default_factory=lambda: [BaseLMConfig()])
    num_agents: int | None = None
    names: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

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
        if self.names is not None and len(self.names) != total:
            raise ValueError(
                f"agents.names has {len(self.names)} names for {total} agents: give one for each"
            )

    @property
    def total(self) -> int:
        """Number of agents."""
        return len(self.bases) if self.num_agents is None else self.num_agents


def build_agents(
    config: AgentsConfig,
    vocab_size: int | None = None,
    *,
    frozen: bool = True,
) -> Agents:
    """Build or load the agents.

    Args:
        config: The agents.
        vocab_size: Number of tokens of models built from sizes, which get their tokenizer later.
            Pretrained models have a tokenizer.
        frozen: Whether models built from sizes are frozen; pretrained ones always are.

    Raises:
        ValueError: if a model must be built from sizes and `vocab_size` is None.
    """
    made: dict[str, Agent] = {}
    agents = []
    for number, base in enumerate(config.bases):
        if base.pretrained is not None:
            key = f"{base.pretrained} {config.dtype or base.pretrained_dtype}"
            if key not in made:
                made[key] = load_agent(
                    base.pretrained,
                    config.dtype or base.pretrained_dtype,
                    ChatForm(config.template_args, config.system_prompt),
                )
            if base.gradient_checkpointing:
                checkpoint_blocks(made[key].model)
            agents.append(made[key])
            continue
        if vocab_size is None:
            raise ValueError(
                f"agents.bases[{number}] has no weights: name a pretrained model (pretrained: "
                "folder or hub name), or start from trained agents (model.init_args.init_from)"
            )
        agents.append(Agent(build_base_lm(base, vocab_size), frozen=frozen))
    if len(agents) == 1:
        agents = agents * config.total
    return Agents(agents, config.names)
