"""An agent: a causal language model that thinks with a prefix in front of its prompt.

    token ids, one list a prompt   -> `Agent.pad`     left-padded batch
    (prefix, prompt)               -> `Agent.inputs`  embeddings, the prefix right before the prompt
                                   -> `Agent.states`  one state a prompt, at a chosen depth
                                   -> `Agent.reply_logits`, `Agent.generate`

Any `transformers` causal LM serves, of any size and family. A prefix is always an input, of states
too: in later rounds an agent has read the thoughts it was sent.

Paper: ThoughtComm, 2510.20733: prefixes of m vectors before the embedded prompt, the models frozen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from triptych.models.commune.agent_state import StateConfig, pool_states
from triptych.models.progress_bars import no_progress_bars

# Shapes: B prompts, P prompt positions, M prefix tokens, C positions of prefix and prompt,
# T reply positions, D width, V vocabulary


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


def load_agent(pretrained: str, dtype: str | None = None) -> Agent:
    """Load a pretrained model, by folder or hub name, as a frozen agent with its tokenizer."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(pretrained, padding_side="left")
    return Agent(model, tokenizer, source=pretrained)


def _positions(mask_BC: Tensor) -> Tensor:
    return (mask_BC.long().cumsum(1) - 1).clamp_min(0)
