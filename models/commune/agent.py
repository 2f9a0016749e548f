"""An agent: a causal language model that reads a prefix of thoughts before its prompt.

    one list of token ids per prompt -> `Agent.pad`     left-padded batch
    (prefix, prompt)                 -> `Agent.inputs`  embeddings, prefix directly before prompt
                                     -> `Agent.states`  one state per prompt, at a chosen depth
                                     -> `Agent.reply_logits`, `Agent.generate`

The model is any `transformers` causal LM. States depend on the prefix too: in later rounds an agent
has read the thoughts sent to it.

Paper: ThoughtComm, 2510.20733: prefixes of m vectors before the embedded prompt; frozen models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.adapter_folder import load_causal_lm, tokenizer_source
from triptych.models.chat_form import ChatForm
from triptych.models.commune.agent_state import StateConfig, pool_states
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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        frozen: bool = True,
        source: str | None = None,
        chat_form: ChatForm = ChatForm(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.model = model
        self.own_tokenizer = tokenizer
        self.frozen = frozen
        self.source = source
        self.chat_form = chat_form
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
        """Build the embeddings of prefix and prompt, with padding before both, and their mask.

        Raises:
            ValueError: if the prefix has another width or number of rows.
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
        """Compute one state per prompt after reading the prefix, float32 (B, D)."""
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
        """Compute `reply_logits` and `states` in one pass."""
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
        values_BCD, mask_BC = self.inputs(ids_BP, mask_BP, prefix_BMD)
        return generate_plainly(
            self.model,
            ends=self.end_ids,
            pad_id=self.pad_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            inputs_embeds=values_BCD,
            attention_mask=mask_BC.long(),
        )

    def decode(self, ids_BT: Tensor) -> list[str]:
        """Decode replies to text, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return texts


def load_agent(
    pretrained: str,
    dtype: str | None = None,
    chat_form: ChatForm = ChatForm(),  # noqa: B008 (frozen)
) -> Agent:
    """Load a pretrained model, by folder or hub name, as a frozen agent with its tokenizer.

    Raises:
        ValueError: if the tokenizer's chat template cannot take the chat form.
    """
    place = pretrained_source(pretrained)
    with no_progress_bars():
        model = load_causal_lm(place, dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(place), padding_side="left")
    chat_form.fix(tokenizer)
    return Agent(model, tokenizer, source=pretrained, chat_form=chat_form)


def _positions(mask_BC: Tensor) -> Tensor:
    return (mask_BC.long().cumsum(1) - 1).clamp_min(0)
