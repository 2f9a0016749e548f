"""Log-probabilities of given completions under a causal language model, token by token."""

# Shapes: B completions, G different prompts, P prompt positions, T completion positions; R rows of
# a pass, S positions of a pass, N tokens scored at once, D hidden width

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

from triptych.models.diversify.decoding_cache import attends_to_everything
from triptych.models.linear_nll import (
    at_least_float32,
    float32_output_layer,
    linear_nll,
    output_weight,
)
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.value_table import counting_only

#: A pass takes rows of at least this length, as a share of its longest row.
SHORTEST_IN_PASS = 0.75
#: Prompts are read once for all their completions if this saves at least this share of the tokens.
WORTH_SHARING = 0.15


@dataclass
class _Scored:
    """The states that predict sampled tokens, and the tokens' places in the flattened (B, T).

    X is the hidden width; it is the vocabulary size if only the model can compute its logits.
    """

    states_NX: Tensor
    place_N: Tensor


def completion_log_prob(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_ids_BT: Tensor,
    token_mask_BT: Tensor,
    chunk_tokens: int = 1024,
    share_prompts: bool = True,
) -> Tensor:
    """Score every sampled token given its prompt and the tokens before it.

    If completions share prompts, each prompt is read once; all its completions use its keys, values
    and gradient. Otherwise prompt and completion are joined without padding between them, and
    causal attention needs no mask for the padding at the end. Rows of similar length form a pass.
    The output layer runs only at positions that predict a sampled token, chunk by chunk, so the
    logits of all tokens never exist at once (`linear_nll`; families that rescale their logits are
    the exception). Padding is no access of a memory layer, and each read of a shared prompt is one
    access.

    Args:
        model: A causal language model.
        prompt_ids_BP: int64, left-padded.
        prompt_mask_BP: bool; True marks a token. Every row has at least one.
        token_ids_BT: int64, right-padded.
        token_mask_BT: bool; True marks a sampled token; those of a row come first.
        chunk_tokens: Largest number of tokens with logits in memory at once.
        share_prompts: Whether to read a prompt once for all its completions, if this saves enough.

    Returns:
        Log-probabilities (B, T) in nats, at least float32, 0 where nothing was sampled;
        differentiable in the model's parameters.
    """
    batch = _Batch(prompt_ids_BP, prompt_mask_BP, token_ids_BT, token_mask_BT)
    weight_VD = output_weight(model)
    if weight_VD is not None and share_prompts and batch.is_worth_sharing(model):
        scored = _read_prompts_once(model, batch)
    else:
        scored = _read_rows(model, batch)
    place_N = torch.cat([part.place_N for part in scored])
    states_NX = torch.cat([part.states_NX for part in scored])
    targets_N = token_ids_BT.flatten()[place_N]
    if weight_VD is None:
        nll_N = cross_entropy(at_least_float32(states_NX), targets_N, reduction="none")
    else:
        nll_N = linear_nll(states_NX, weight_VD, targets_N, chunk_tokens)
    flat = nll_N.new_zeros(token_ids_BT.numel()).index_copy(0, place_N, -nll_N)
    return flat.view(token_ids_BT.shape)


class _Batch:
    """Prompts and completions, and the places of their tokens."""

    def __init__(
        self,
        prompt_ids_BP: Tensor,
        prompt_mask_BP: Tensor,
        token_ids_BT: Tensor,
        token_mask_BT: Tensor,
    ) -> None:
        self.prompt_ids_BP, self.prompt_mask_BP = prompt_ids_BP, prompt_mask_BP
        self.token_ids_BT, self.token_mask_BT = token_ids_BT, token_mask_BT
        self.prompt_length_B = prompt_mask_BP.sum(1)
        self.num_tokens_B = token_mask_BT.sum(1)
        self.device = token_ids_BT.device
        marked_BP = torch.where(prompt_mask_BP, prompt_ids_BP, -1)
        prompts_GP, self.prompt_of_B = torch.unique(marked_BP, dim=0, return_inverse=True)
        row_B = torch.arange(len(token_ids_BT), device=self.device)
        first_G = torch.full((len(prompts_GP),), len(row_B), device=self.device)
        #: The first row of each different prompt.
        self.first_row_G = first_G.scatter_reduce(0, self.prompt_of_B, row_B, "amin")

    def is_worth_sharing(self, model: PreTrainedModel) -> bool:
        """Return whether to read each prompt once; the model must support our masks and a cache."""
        config = model.config
        if config._attn_implementation != "sdpa" or not attends_to_everything(config):
            return False
        all_prompts = self.prompt_length_B.sum()
        spared = all_prompts - self.prompt_length_B[self.first_row_G].sum()
        return float(spared / (all_prompts + self.num_tokens_B.sum())) >= WORTH_SHARING

    def moved_left(self, rows_R: Tensor, length_R: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Join prompts and completions without the padding before them, cut to `width`.

        Returns:
            Ids and mask, (R, width), the mask True for the first `length_R` tokens of a row.
        """
        ids_RF = torch.cat([self.prompt_ids_BP[rows_R], self.token_ids_BT[rows_R]], 1)
        offset_S = torch.arange(width, device=self.device)
        real_RS = offset_S < length_R[:, None]
        pad_R1 = self.prompt_ids_BP.shape[1] - self.prompt_length_B[rows_R, None]
        # Padding repeats the first token: nothing attends to it, but it must be a valid id.
        return ids_RF.gather(1, pad_R1 + offset_S * real_RS), real_RS

    def sampled(self, rows_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row in the pass, position and place in (B, T) of these rows' sampled tokens."""
        row_N, token_N = self.token_mask_BT[rows_R].nonzero(as_tuple=True)
        return row_N, token_N, rows_R[row_N] * self.token_ids_BT.shape[1] + token_N


def _read_rows(model: PreTrainedModel, batch: _Batch) -> list[_Scored]:
    """Read prompt and completion of every row, in passes of similar length."""
    from_hidden = output_weight(model) is not None
    # The last token of a completion predicts nothing and is not read.
    length_B = batch.prompt_length_B + batch.num_tokens_B - 1
    scored = []
    for rows_R, longest in _passes(length_B):
        ids_RS, real_RS = batch.moved_left(rows_R, length_B[rows_R], longest)
        with counting_only(value_tables(model), real_RS.flatten()), float32_output_layer(model):
            if from_hidden:
                states = model.base_model(input_ids=ids_RS, use_cache=False).last_hidden_state
            else:
                states = model(input_ids=ids_RS, use_cache=False).logits
        row_N, token_N, place_N = batch.sampled(rows_R)
        before_N = batch.prompt_length_B[rows_R[row_N]] + token_N - 1
        picked = states.flatten(0, 1).index_select(0, row_N * longest + before_N)
        scored.append(_Scored(picked, place_N))
    return scored


def _read_prompts_once(model: PreTrainedModel, batch: _Batch) -> list[_Scored]:
    """Read every prompt, then every completion with the cached keys and values of its prompt."""
    prompt_length_G = batch.prompt_length_B[batch.first_row_G]
    width = int(prompt_length_G.max())
    ids_GS, real_GS = batch.moved_left(batch.first_row_G, prompt_length_G, width)
    prompt_cache = DynamicCache(config=model.config)
    tables = value_tables(model)
    with counting_only(tables, real_GS.flatten()):
        hidden_GSD = model.base_model(
            input_ids=ids_GS, past_key_values=prompt_cache, use_cache=True
        ).last_hidden_state
    last_GD = hidden_GSD[torch.arange(len(ids_GS), device=batch.device), prompt_length_G - 1]

    first_B = torch.arange(len(batch.token_ids_BT), device=batch.device)
    first_B = first_B[batch.num_tokens_B > 0]
    scored = [
        _Scored(
            last_GD.index_select(0, batch.prompt_of_B[first_B]),
            first_B * batch.token_ids_BT.shape[1],
        )
    ]
    for rows_R, longest in _passes(batch.num_tokens_B - 1):
        prompt_R = batch.prompt_of_B[rows_R]
        ids_RS = batch.token_ids_BT[rows_R, :longest]
        offset_S = torch.arange(longest, device=batch.device)
        causal_SS = (offset_S[:, None] >= offset_S).expand(len(rows_R), longest, longest)
        before_RSP = real_GS[prompt_R, None].expand(len(rows_R), longest, width)
        real_RS = offset_S < batch.num_tokens_B[rows_R, None] - 1
        with counting_only(tables, real_RS.flatten()):
            hidden_RSD = model.base_model(
                input_ids=ids_RS,
                attention_mask=torch.cat([before_RSP, causal_SS], 2)[:, None],
                position_ids=batch.prompt_length_B[rows_R, None] + offset_S,
                past_key_values=_copies(prompt_cache, prompt_R, model),
                use_cache=True,
            ).last_hidden_state
        row_N, token_N, place_N = batch.sampled(rows_R)
        later = token_N > 0
        row_N, token_N, place_N = row_N[later], token_N[later], place_N[later]
        picked = hidden_RSD.flatten(0, 1).index_select(0, row_N * longest + token_N - 1)
        scored.append(_Scored(picked, place_N))
    return scored


def _copies(cache: DynamicCache, rows_R: Tensor, model: PreTrainedModel) -> DynamicCache:
    """Give every row the keys and values of its prompt; their gradients add up in the prompt."""
    made = DynamicCache(config=model.config)
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        copied = (states.index_select(0, rows_R) for states in (layer.keys, layer.values))
        made.update(*copied, number)
    return made


def _passes(length_B: Tensor) -> list[tuple[Tensor, int]]:
    """Group rows of similar length into passes, longest first: (rows, length of the longest).

    Rows of length 0 are in no pass.

    >>> [(rows.tolist(), longest) for rows, longest in _passes(torch.tensor([5, 100, 80, 4, 0]))]
    [([1, 2], 100), ([0, 3], 5)]
    """
    lengths = length_B.tolist()
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if lengths[row] < 1:
            break
        if not passes or lengths[row] < SHORTEST_IN_PASS * lengths[passes[-1][0]]:
            passes.append([])
        passes[-1].append(row)
    return [(torch.tensor(rows, device=length_B.device), lengths[rows[0]]) for rows in passes]
