"""Agents: frozen causal language models that think with a prefix in front of their prompt.

    token ids, one list a prompt   -> `Agent.pad`     left-padded batch
    (prefix, prompt)               -> `Agent.inputs`  embeddings, the prefix right before the prompt
                                   -> `Agent.states`  one state a prompt, at a chosen depth
                                   -> `Agent.reply_logits`, `Agent.generate`

Any `transformers` causal LM serves, of any size and family; agents need not be alike. A prefix is
always an input, of states too: in later rounds an agent has read the thoughts it was sent.

Paper: ThoughtComm, 2510.20733: the last token's hidden state; prefixes of m vectors before the
embedded prompt, the models frozen. Which layer is not in the paper; two thirds of the depth is what
its authors are quoted with.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.base_lm import BaseLMConfig, build_base_lm
from models.progress_bars import no_progress_bars

# Shapes: B prompts, P prompt positions, M prefix tokens, T reply positions, D width, V vocabulary

AGENTS_FILE = "agents.json"
_OWN = "model_"
Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class StateConfig:
    """Which hidden state stands for what an agent thinks.

    Args:
        depth: Share of the layers below it; 1: the output of the last one.
        pool: `last` token, the paper's, or the `mean` over prompt and prefix.

    Raises:
        ValueError: if a setting is out of range.
    """

    depth: float = 2 / 3
    pool: Pool = "last"

    def __post_init__(self) -> None:
        if not 0 < self.depth <= 1:
            raise ValueError(f"state.depth is {self.depth}: set it above 0 and to at most 1")
        if self.pool not in get_args(Pool):
            raise ValueError(f"state.pool is {self.pool!r}: choose last or mean")

    def layer(self, num_layers: int) -> int:
        """Number of layers below the state, at least 1.

        >>> StateConfig().layer(28)
        19
        """
        return max(1, round(self.depth * num_layers))


@dataclass
class AgentsConfig:
    """Who takes part.

    Args:
        bases: The agents' models, from sizes or pretrained ones (by folder or hub name). One entry
            for `num_agents` of them: they share it.
        num_agents: How many, where `bases` has one entry; null: as many as `bases`.
        names: What they are called; null: agent 0, agent 1, ...
        dtype: Precision of the weights of pretrained models; null: that of their files.

    Raises:
        ValueError: with fewer than two agents, or numbers that do not agree.
    """

    bases: list[BaseLMConfig] = field(default_factory=lambda: [BaseLMConfig()])
    num_agents: int | None = None
    names: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None

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


class Agent(nn.Module):
    """A causal language model and its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with EOS; padding falls back to EOS. It may be given later.
        frozen: Whether its parameters stay as they are, and its dropout off.
        source: Where it was loaded from, if it can be again: exports then name it, and hold no
            copy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        frozen: bool = True,
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.own_tokenizer = tokenizer
        self.frozen = frozen
        self.source = source
        if frozen:
            model.requires_grad_(False).eval()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        assert self.own_tokenizer is not None, "the agent has not got its tokenizer yet"
        return self.own_tokenizer

    @property
    def width(self) -> int:
        """D, of its token embeddings."""
        return int(self.embedding_weight.shape[1])

    @property
    def state_size(self) -> int:
        """Of its hidden states."""
        size: int = self.model.config.get_text_config().hidden_size
        return size

    @property
    def num_layers(self) -> int:
        """Decoder blocks."""
        number: int = self.model.config.get_text_config().num_hidden_layers
        return number

    @property
    def embedding_weight(self) -> Tensor:
        """Token embeddings, (V, D)."""
        embedding: Any = self.model.get_input_embeddings()
        weight: Tensor = embedding.weight
        return weight

    @property
    def embedding_rms(self) -> float:
        """Root mean square element of the token embeddings: the scale that it expects of inputs."""
        weight_VD = self.embedding_weight.detach()
        return float(weight_VD.float().square().mean().sqrt())

    @property
    def pad_id(self) -> int:
        """Token that padding is filled with; its value never matters."""
        pad: int | None = self.tokenizer.pad_token_id
        return pad if pad is not None else int(self.tokenizer.eos_token_id)

    def pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-pad prompts: int64 ids (B, P) and a bool mask, True for tokens.

        Raises:
            ValueError: if a prompt is empty.
        """
        if empty := [number for number, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(f"prompts {empty[:8]} have no tokens: give each at least one")
        longest = max(len(prompt) for prompt in prompts)
        ids_BP = torch.full((len(prompts), longest), self.pad_id)
        mask_BP = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids_BP[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BP[row, longest - len(prompt) :] = True
        device = self.embedding_weight.device
        return ids_BP.to(device), mask_BP.to(device)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as the model makes them of ids."""
        values: Tensor = self.model.get_input_embeddings()(ids)
        return values

    def inputs(
        self, ids_BP: Tensor, mask_BP: Tensor, prefix_BMD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of prefix and prompt, padding before both, and the mask of all.

        Raises:
            ValueError: if the prefix is of another width or number.
        """
        # What trains around it puts all modules into training mode; a frozen one has no dropout.
        if self.frozen and self.model.training:
            self.model.eval()
        values_BPD = self.embed(ids_BP)
        if prefix_BMD is None:
            return values_BPD, mask_BP
        if len(prefix_BMD) != len(ids_BP) or prefix_BMD.shape[2] != values_BPD.shape[2]:
            raise ValueError(
                f"a prefix of shape {tuple(prefix_BMD.shape)} does not go before {len(ids_BP)} "
                f"prompts of an agent whose embeddings have {values_BPD.shape[2]} dimensions: make "
                "it with the adapter of this agent"
            )
        both_BCD = torch.cat([prefix_BMD.to(values_BPD.dtype), values_BPD], 1)
        mask_BC = torch.cat([mask_BP.new_ones(prefix_BMD.shape[:2]), mask_BP], 1)
        if bool(mask_BP.all()):
            return both_BCD, mask_BC
        order_BC1 = mask_BC.int().argsort(dim=1, stable=True)[:, :, None]
        return both_BCD.take_along_dim(order_BC1, 1), mask_BC.sort(1).values

    def states(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        config: StateConfig,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """One state of each prompt, float32 (B, D), with the prefix read."""
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        hidden = self.model.base_model(
            inputs_embeds=values_BCD,
            attention_mask=mask_BC,
            position_ids=_positions(mask_BC),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        layer_BCD: Tensor = hidden[config.layer(self.num_layers)].float()
        return pool_states(layer_BCD, mask_BC, config)

    def reply_logits(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        replies: Tensor,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """Logits of each reply token, given what stands before it: float32 (B, T, V).

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            replies: Right-padded ids (B, T), or embeddings (B, T, D).
            prefix_BMD: Before the prompts.
        """
        return self._read(ids_BP, mask_BP, replies, prefix_BMD, False).logits.float()

    def reply_logits_and_states(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        replies: Tensor,
        config: StateConfig,
        prefix_BMD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`reply_logits` and `states` in one pass."""
        output = self._read(ids_BP, mask_BP, replies, prefix_BMD, True)
        _, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        layer_BCD = output.hidden_states[config.layer(self.num_layers)].float()
        states_BD = pool_states(layer_BCD[:, : mask_BC.shape[1]], mask_BC, config)
        return output.logits.float(), states_BD

    def _read(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        replies: Tensor,
        prefix_BMD: Tensor | None,
        output_hidden_states: bool,
    ) -> Any:
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        replies_BTD = self.embed(replies) if replies.ndim == 2 else replies.to(values_BCD.dtype)
        # The last reply token predicts nothing, and right padding is seen by nothing that counts.
        all_BCD = torch.cat([values_BCD, replies_BTD[:, :-1]], 1)
        all_mask_BC = torch.cat([mask_BC, mask_BC.new_ones(replies_BTD[:, :-1].shape[:2])], 1)
        return self.model(
            inputs_embeds=all_BCD,
            attention_mask=all_mask_BC,
            position_ids=_positions(all_mask_BC),
            use_cache=False,
            logits_to_keep=replies_BTD.shape[1],
            output_hidden_states=output_hidden_states,
        )

    @torch.no_grad()
    def generate(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        max_new_tokens: int,
        prefix_BMD: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """Continue the prompts: int64 ids (B, T) of the replies alone, padded after their EOS.

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            max_new_tokens: Longest reply.
            prefix_BMD: Before the prompts, each row its own.
            temperature: 0: greedy.
        """
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        generator: Any = self.model
        ids_BT: Tensor = generator.generate(
            inputs_embeds=values_BCD,
            attention_mask=mask_BC.long(),
            max_new_tokens=max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.pad_id,
            **options,
        )
        return ids_BT

    def decode(self, ids_BT: Tensor) -> list[str]:
        """Replies as text, special tokens left out."""
        texts: list[str] = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return texts


class Agents(nn.Module):
    """Several agents, of which some may be one and the same model.

    Args:
        agents: The agents.
        names: What they are called; null: agent 0, agent 1, ...

    Raises:
        ValueError: with fewer than two agents.
    """

    def __init__(self, agents: Sequence[Agent], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if len(agents) < 2:
            raise ValueError(f"there are {len(agents)} agents: an exchange needs at least two")
        self.agents = nn.ModuleList(agents)
        self.names = list(names) if names else [f"agent {k}" for k in range(len(agents))]

    def __len__(self) -> int:
        return len(self.agents)

    def __getitem__(self, number: int) -> Agent:
        agent = self.agents[number]
        assert isinstance(agent, Agent)
        return agent

    def __iter__(self) -> Iterator[Agent]:
        return (self[number] for number in range(len(self)))

    @property
    def state_sizes(self) -> list[int]:
        """Width of each agent's state."""
        return [agent.state_size for agent in self]

    @property
    def widths(self) -> list[int]:
        """Width of each agent's embeddings."""
        return [agent.width for agent in self]

    def give_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give it to every agent that has none."""
        for agent in self:
            if agent.own_tokenizer is None:
                agent.own_tokenizer = tokenizer

    def fingerprints(self) -> list[str]:
        """Of each agent's weights."""
        known: dict[int, str] = {}
        for agent in self:
            if id(agent) not in known:
                known[id(agent)] = _fingerprint(agent.model)
        return [known[id(agent)] for agent in self]

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write each different model with its tokenizer, and who has which.

        Models that were loaded from somewhere are named, not copied.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        places: dict[int, str] = {}
        for agent in self:
            if id(agent) in places:
                continue
            if agent.source is not None:
                places[id(agent)] = agent.source
                continue
            place = places[id(agent)] = f"{_OWN}{len(places)}"
            with no_progress_bars():
                agent.model.save_pretrained(folder / place)
            agent.tokenizer.save_pretrained(folder / place)
        who = {
            "names": self.names,
            "models": [places[id(agent)] for agent in self],
            "dtypes": [str(agent.model.dtype).removeprefix("torch.") for agent in self],
        }
        (folder / AGENTS_FILE).write_text(json.dumps(who, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Agents":
        """Read what `save_pretrained` wrote; the agents are frozen.

        Raises:
            FileNotFoundError: if there are no agents in the folder.
        """
        folder = Path(folder)
        path = folder / AGENTS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no agents in {folder} ({AGENTS_FILE} is missing): give the folder "
                "`export` of a run that trained or used agents"
            )
        who = json.loads(path.read_text())
        made: dict[str, Agent] = {}
        for place, dtype in zip(who["models"], who["dtypes"], strict=True):
            if place not in made and place.startswith(_OWN):
                made[place] = load_agent(str(folder / place), dtype)
                made[place].source = None
            elif place not in made:
                made[place] = load_agent(place, dtype)
        return cls([made[place] for place in who["models"]], who["names"])


def load_agent(pretrained: str, dtype: str | None = None) -> Agent:
    """Load a pretrained model, by folder or hub name, as a frozen agent with its tokenizer."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(pretrained, padding_side="left")
    return Agent(model, tokenizer, source=pretrained)


def build_agents(
    config: AgentsConfig,
    vocab_size: int | None = None,
    *,
    frozen: bool = True,
) -> Agents:
    """Build or load the agents.

    Args:
        config: Who takes part.
        vocab_size: Of those that are built from sizes, which get their tokenizer later; pretrained
            ones bring their own.
        frozen: Of those built from sizes; pretrained ones are.

    Raises:
        ValueError: if a model is to be built from sizes and there is no vocabulary.
    """
    made: dict[str, Agent] = {}
    agents = []
    for number, base in enumerate(config.bases):
        if base.pretrained is not None:
            key = f"{base.pretrained} {config.dtype or base.pretrained_dtype}"
            if key not in made:
                made[key] = load_agent(base.pretrained, config.dtype or base.pretrained_dtype)
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


def pool_states(hidden_BCD: Tensor, mask_BC: Tensor, config: StateConfig) -> Tensor:
    """One vector a row: the last position's, or the mean over what the mask keeps."""
    if config.pool == "last":
        return hidden_BCD[:, -1]
    weight_BC1 = mask_BC[:, :, None].to(hidden_BCD)
    return (hidden_BCD * weight_BC1).sum(1) / weight_BC1.sum(1)


def _positions(mask_BC: Tensor) -> Tensor:
    return (mask_BC.long().cumsum(1) - 1).clamp_min(0)


def _fingerprint(model: nn.Module) -> str:
    """Hash of all parameters with their names."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()
