"""How probable given completions are under a causal language model, token by token."""

# Shapes: B completions, P prompt positions, T completion positions; R rows of one pass, S positions
# of one pass, N sampled tokens of one pass, D hidden width

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from models.linear_nll import at_least_float32, linear_nll
from models.memory_blocks import value_tables
from models.output_layer import output_weight
from models.value_table import counting_only

#: A pass takes rows that are at least this long, as a share of its longest.
SHORTEST_IN_PASS = 0.75


def completion_log_prob(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_ids_BT: Tensor,
    token_mask_BT: Tensor,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Score every sampled token given its prompt and the tokens before it.

    Prompt and completion are moved together, so that padding is only at the end, where causal
    attention needs no mask against it; rows of similar length make a pass. The output layer runs
    at the positions that predict a sampled token and nowhere else, a chunk at a time, so that
    logits of all tokens never exist (`models.linear_nll`; families that rescale their logits are
    the exception). Padding is no access of a memory layer.

    Args:
        model: A causal language model.
        prompt_ids_BP: int64, left-padded.
        prompt_mask_BP: bool; True marks a token. Every row has at least one.
        token_ids_BT: int64, right-padded.
        token_mask_BT: bool; True marks a sampled token; those of a row come first.
        chunk_tokens: Largest number of tokens whose logits exist at once.

    Returns:
        Log-probabilities in nats, at least float32, (B, T), 0 where nothing was sampled;
        differentiable in the model's parameters.
    """
    prompt_length_B = prompt_mask_BP.sum(1)
    length_B = prompt_length_B + token_mask_BT.sum(1)
    pad_B = prompt_ids_BP.shape[1] - prompt_length_B
    ids_BF = torch.cat([prompt_ids_BP, token_ids_BT], 1)
    places, scores = [], []
    for rows, longest in _passes(length_B.tolist()):
        rows_R = torch.tensor(rows, device=ids_BF.device)
        offset_RS = torch.arange(longest, device=ids_BF.device).expand(len(rows), longest)
        real_RS = offset_RS < length_B[rows_R, None]
        # Padding repeats the first token: it is read by nothing, but has to be a token.
        source_RS = pad_B[rows_R, None] + offset_RS * real_RS
        row_N, token_N = token_mask_BT[rows_R].nonzero(as_tuple=True)
        place_N = rows_R[row_N] * token_ids_BT.shape[1] + token_N
        scores.append(
            _log_prob(
                model,
                ids_BF[rows_R].gather(1, source_RS),
                real_RS,
                row_N * longest + prompt_length_B[rows_R[row_N]] + token_N - 1,
                token_ids_BT.flatten()[place_N],
                chunk_tokens,
            )
        )
        places.append(place_N)
    score_M = torch.cat(scores)
    flat = score_M.new_zeros(token_ids_BT.numel()).index_copy(0, torch.cat(places), score_M)
    return flat.view(token_ids_BT.shape)


def _log_prob(
    model: PreTrainedModel,
    ids_RS: Tensor,
    real_RS: Tensor,
    position_N: Tensor,
    targets_N: Tensor,
    chunk_tokens: int,
) -> Tensor:
    weight_VD = output_weight(model)
    with counting_only(value_tables(model), real_RS.flatten()):
        if weight_VD is None:
            logits_RSV = model(input_ids=ids_RS, use_cache=False).logits
            logits_NV = at_least_float32(logits_RSV.flatten(0, 1)[position_N])
            return -cross_entropy(logits_NV, targets_N, reduction="none")
        hidden_RSD = model.base_model(input_ids=ids_RS, use_cache=False).last_hidden_state
    hidden_ND = hidden_RSD.flatten(0, 1).index_select(0, position_N)
    return -linear_nll(hidden_ND, weight_VD, targets_N, chunk_tokens)


def _passes(lengths: Sequence[int]) -> list[tuple[list[int], int]]:
    """Group rows of similar length, longest first: (rows, length of the longest) of each pass.

    >>> _passes([5, 100, 80, 4, 99])
    [([1, 4, 2], 100), ([0, 3], 5)]
    """
    passes: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not passes or lengths[row] < SHORTEST_IN_PASS * passes[-1][1]:
            passes.append(([], lengths[row]))
        passes[-1][0].append(row)
    return passes
