"""An agent: a causal language model that reads a prefix of thoughts with its prompt.

    one list of token ids per prompt -> `Agent.pad`     left-padded batch
    (prefix, prompt)                 -> `Agent.inputs`  embeddings, the prefix at its place
                                     -> `Agent.states`  one state per prompt, at a chosen depth
                                     -> `Agent.reply_logits`, `Agent.reply`

The model is any `transformers` causal LM. States depend on the prefix too: in later rounds an agent
has read the thoughts sent to it.

Paper: ThoughtComm, 2510.20733: prefixes of m vectors before the embedded prompt; frozen models.
Ours: other places in the prompt (`prefix_place`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from triptych.models.adapter_folder import load_causal_lm, tokenizer_source
from triptych.models.chat_form import ChatForm
from triptych.models.commune.agent_state import StateConfig, pool_states
from triptych.models.commune.prefix_place import Place, PlaceFinder
from triptych.models.commune.sampled_tokens import RowNoise
from triptych.models.end_tokens import end_tokens
from triptych.models.generation import generate_plainly
from triptych.models.pretrained_source import pretrained_source
from triptych.models.progress_bars import no_progress_bars

# Shapes: B prompts, P prompt positions, M prefix tokens, C positions of prefix and prompt,
# T reply positions, D width, V vocabulary


class Agent(nn.Module):
    """A causal language model and its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with EOS; padding falls back to EOS. It may be set later.
        frozen: Whether to freeze the parameters and switch dropout off.
        source: Folder or hub name that the model was loaded from. Exports then refer to it and hold
            no copy. None: exports hold the weights.
        chat_form: What was fixed in the tokenizer's chat template after it was loaded.
        temperature: Sampling temperature of its replies; 0: greedy.
        seed: Seed of sampled replies.
        place: Where prefixes stand in its prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        frozen: bool = True,
        source: str | None = None,
        chat_form: ChatForm = ChatForm(),  # noqa: B008 (frozen)
        temperature: float = 0.0,
        seed: int = 0,
        place: Place = "before_prompt",
    ) -> None:
        super().__init__()
        self.model = model
        self.own_tokenizer = tokenizer
        self.frozen = frozen
        self.source = source
        self.chat_form = chat_form
        self.temperature = temperature
        self.seed = seed
        self.place: Place = place
        self._finder: PlaceFinder | None = None
        if frozen:
            model.requires_grad_(False).eval()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        assert self.own_tokenizer is not None, "the agent's tokenizer is not set yet"
        return self.own_tokenizer

    @property
    def width(self) -> int:
        """D, the width of the token embeddings."""
        return int(self.embedding_weight.shape[1])

    @property
    def state_size(self) -> int:
        """Width of the hidden states."""
        size: int = self.model.config.get_text_config().hidden_size
        return size

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        number: int = self.model.config.get_text_config().num_hidden_layers
        return number

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * self.num_layers * heads * size * self.model.dtype.itemsize)

    @property
    def embedding_weight(self) -> Tensor:
        """Token embeddings, (V, D)."""
        embedding: Any = self.model.get_input_embeddings()
        weight: Tensor = embedding.weight
        return weight

    @property
    def embedding_rms(self) -> float:
        """Root mean square element of the token embeddings, the scale of the model's inputs."""
        weight_VD = self.embedding_weight.detach()
        return float(weight_VD.float().square().mean().sqrt())

    @property
    def pad_id(self) -> int:
        """Id of the padding token; its value does not matter."""
        pad: int | None = self.tokenizer.pad_token_id
        return pad if pad is not None else int(self.tokenizer.eos_token_id)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a reply, the tokenizer's own first."""
        return end_tokens(self.model, self.tokenizer)

    @property
    def num_positions(self) -> int | None:
        """Longest text that the model is made for, in tokens; None: it has no limit."""
        config = self.model.config.get_text_config()
        limit: int | None = getattr(config, "max_position_embeddings", None)
        return limit

    def require_room(self, prompts: Sequence[Sequence[int]], num_prefix: int = 0) -> None:
        """Refuse prompts that fill the model's context, so that no reply fits.

        Raises:
            ValueError: if a prompt does so.
        """
        limit = self.num_positions
        for number, prompt in enumerate(prompts if limit else []):
            if len(prompt) + num_prefix >= (limit or 0):
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens, with {num_prefix} of a prefix, and "
                    f"the agent's model has {limit} positions, so no reply fits: leave out or "
                    "shorten the longest questions, lower the task's max_new_tokens (replies are "
                    "heard by others), or use a model with a longer context"
                )

    def pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-pad prompts; returns int64 ids (B, P) and a bool mask, True for tokens.

        Raises:
            ValueError: if a prompt is empty.
        """
        if empty := [number for number, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(f"prompts {empty[:8]} have no tokens: give each at least one")
        longest = max(len(prompt) for prompt in prompts)
        ids_BP = torch.full((len(prompts), longest), self.pad_id, dtype=torch.int64)
        mask_BP = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids_BP[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
            mask_BP[row, longest - len(prompt) :] = True
        device = self.embedding_weight.device
        return ids_BP.to(device), mask_BP.to(device)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the model's embeddings of token ids."""
        values: Tensor = self.model.get_input_embeddings()(ids)
        return values

    def inputs(
        self, ids_BP: Tensor, mask_BP: Tensor, prefix_BMD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Build the embeddings of prompt and prefix, with padding before both, and their mask.

        Raises:
            ValueError: if the prefix has another width or number of rows, or a prompt has no such
                place.
        """
        # A trainer puts all modules into training mode, but a frozen model has no dropout.
        if self.frozen and self.model.training:
            self.model.eval()
        values_BPD = self.embed(ids_BP)
        if prefix_BMD is None:
            return values_BPD, mask_BP
        if len(prefix_BMD) != len(ids_BP) or prefix_BMD.shape[2] != values_BPD.shape[2]:
            raise ValueError(
                f"a prefix of shape {tuple(prefix_BMD.shape)} does not fit {len(ids_BP)} prompts "
                f"of an agent with embeddings of {values_BPD.shape[2]} dimensions: use the "
                "prefixes of this agent's adapter"
            )
        both_BCD = torch.cat([prefix_BMD.to(values_BPD.dtype), values_BPD], 1)
        mask_BC = torch.cat([mask_BP.new_ones(prefix_BMD.shape[:2]), mask_BP], 1)
        if self.place == "before_prompt" and bool(mask_BP.all()):
            return both_BCD, mask_BC
        order_BC = self._order(ids_BP, mask_BP, prefix_BMD.shape[1])
        ordered_BCD = both_BCD.take_along_dim(order_BC[:, :, None], 1)
        return ordered_BCD, mask_BC.take_along_dim(order_BC, 1)

    def _order(self, ids_BP: Tensor, mask_BP: Tensor, num_prefix: int) -> Tensor:
        """Return the order that takes [prefix, padding, prompt] to the prefix at its place."""
        if self._finder is None or self._finder.place != self.place:
            self._finder = PlaceFinder(self.tokenizer, self.place)
        places = []
        for prompt in unpadded(ids_BP, mask_BP):
            padding = ids_BP.shape[1] - len(prompt)
            places.append(padding + self._finder.index(prompt))
        place_B1 = torch.tensor(places, device=ids_BP.device, dtype=torch.int64)[:, None]
        room = num_prefix + 1
        # Between the keys of two tokens there is room for those of the prefix.
        key_M = torch.arange(-num_prefix, 0, device=ids_BP.device)
        key_P = torch.arange(ids_BP.shape[1], device=ids_BP.device) * room
        key_BC = torch.cat([place_B1 * room + key_M, key_P.expand_as(ids_BP)], 1)
        return key_BC.argsort(dim=1)

    def states(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        config: StateConfig,
        prefix_BMD: Tensor | None = None,
        replies: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Compute one state per prompt after reading the prefix, float32 (B, size).

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            config: Layer and tokens.
            prefix_BMD: Prefixes of the prompts.
            replies: What the agent replied, without end tokens, for states of replies
                (`state.read: reply`).

        Raises:
            ValueError: if states of replies are asked for and none are given.
        """
        if config.read == "reply" and replies is None:
            raise ValueError("state.read is reply: give the replies, or set it to prompt")
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        if config.read == "reply" and replies is not None and any(replies):
            values_BCD, mask_BC = self._with_replies(values_BCD, mask_BC, replies)
        hidden = self.model.base_model(
            inputs_embeds=values_BCD,
            attention_mask=mask_BC,
            position_ids=_positions(mask_BC),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        layer_BCD: Tensor = hidden[config.layer(self.num_layers)].float()
        return pool_states(layer_BCD, mask_BC, config)

    def _with_replies(
        self, values_BCD: Tensor, mask_BC: Tensor, replies: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Append replies, with all padding before the prompts."""
        longest = max(map(len, replies))
        ids_BT = torch.full((len(replies), longest), self.pad_id, dtype=torch.int64)
        said_BT = torch.zeros(len(replies), longest, dtype=torch.bool)
        for row, reply in enumerate(replies):
            ids_BT[row, : len(reply)] = torch.tensor(list(reply), dtype=torch.int64)
            said_BT[row, : len(reply)] = True
        all_BCD = torch.cat([values_BCD, self.embed(ids_BT.to(values_BCD.device))], 1)
        all_mask_BC = torch.cat([mask_BC, said_BT.to(mask_BC.device)], 1)
        order_BC = all_mask_BC.int().argsort(dim=1, stable=True)
        return all_BCD.take_along_dim(order_BC[:, :, None], 1), all_mask_BC.sort(1).values

    def reply_logits(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        replies: Tensor,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of each reply token given all tokens before it: float32 (B, T, V).

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            replies: Right-padded ids (B, T), or embeddings (B, T, D).
            prefix_BMD: Prefixes of the prompts.
        """
        logits_BTV: Tensor = self._read(ids_BP, mask_BP, replies, prefix_BMD, False).logits
        return logits_BTV.float()

    def reply_logits_and_states(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        replies: Tensor,
        config: StateConfig,
        prefix_BMD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute `reply_logits` and the prompts' `states` in one pass."""
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
        # The last reply token predicts nothing. No position that counts attends to right padding.
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
        """Continue the prompts; returns int64 ids (B, T) of only the replies, padded after the end.

        The model's `generation_config.json` has no effect but for its end tokens.

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            max_new_tokens: Longest reply.
            prefix_BMD: Prefixes of the prompts, one per row.
            temperature: Sampling temperature; 0: greedy.
        """
        return self._continue(ids_BP, mask_BP, max_new_tokens, prefix_BMD, temperature=temperature)

    @torch.no_grad()
    def reply(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        max_new_tokens: int,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """Reply at the agent's own temperature; returns int64 ids (B, T), padded after the end.

        A sampled reply follows from the agent's seed and the prompt: it is the same at every call,
        whatever else is in the batch, and its noise is the same with another prefix.

        Args:
            ids_BP: Prompts, left-padded.
            mask_BP: True for tokens.
            max_new_tokens: Longest reply; the model's context bounds it too.
            prefix_BMD: Prefixes of the prompts, one per row.

        Raises:
            ValueError: if a prompt leaves no room for a reply.
        """
        noise = LogitsProcessorList()
        num_prefix = 0 if prefix_BMD is None else prefix_BMD.shape[1]
        prompts = unpadded(ids_BP, mask_BP)
        if self.temperature > 0:
            noise.append(RowNoise(prompts, self.temperature, self.seed, ids_BP.device))
        if self.num_positions is not None:
            self.require_room(prompts, num_prefix)
            longest = max(map(len, prompts))
            max_new_tokens = min(max_new_tokens, self.num_positions - longest - num_prefix)
        return self._continue(ids_BP, mask_BP, max_new_tokens, prefix_BMD, logits_processor=noise)

    def _continue(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        max_new_tokens: int,
        prefix_BMD: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        return generate_plainly(
            self.model,
            ends=self.end_ids,
            pad_id=self.pad_id,
            max_new_tokens=max_new_tokens,
            inputs_embeds=values_BCD,
            attention_mask=mask_BC.long(),
            **settings,
        )

    def without_end(self, ids_BT: Tensor) -> list[list[int]]:
        """Return the tokens of replies before their first end token."""
        ends = set(self.end_ids)
        rows = []
        for ids in ids_BT.tolist():
            stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            rows.append(ids[:stop])
        return rows

    def decode(self, ids_BT: Tensor) -> list[str]:
        """Decode replies to text, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return texts


def load_agent(
    pretrained: str,
    dtype: str | None = None,
    chat_form: ChatForm = ChatForm(),  # noqa: B008 (frozen)
    temperature: float = 0.0,
    seed: int = 0,
    model: PreTrainedModel | None = None,
) -> Agent:
    """Load a pretrained model, by folder or hub name, as a frozen agent with its tokenizer.

    Args:
        pretrained: Folder or hub name.
        dtype: Precision of the weights; None: that of the files.
        chat_form: Settings of the tokenizer's chat template.
        temperature: See `Agent`.
        seed: See `Agent`.
        model: The model, if another agent has loaded it already.

    Raises:
        ValueError: if the tokenizer's chat template cannot take the chat form.
    """
    place = pretrained_source(pretrained)
    if model is None:
        with no_progress_bars():
            model = load_causal_lm(place, dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_source(place), padding_side="left", trust_remote_code=False
    )
    chat_form.fix(tokenizer)
    return Agent(
        model,
        tokenizer,
        source=pretrained,
        chat_form=chat_form,
        temperature=temperature,
        seed=seed,
    )


def unpadded(ids_BP: Tensor, mask_BP: Tensor) -> list[list[int]]:
    """Return the tokens of left-padded prompts.

    >>> unpadded(torch.tensor([[0, 5], [6, 0]]), torch.tensor([[False, True], [True, True]]))
    [[5], [6, 0]]
    """
    # One transfer from the device. No token has the id -1.
    rows: list[list[int]] = torch.where(mask_BP, ids_BP, -1).tolist()
    return [[token for token in row if token >= 0] for row in rows]


def _positions(mask_BC: Tensor) -> Tensor:
    return (mask_BC.long().cumsum(1) - 1).clamp_min(0)
