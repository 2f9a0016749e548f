"""Ancestral sampling of SMILES from a recurrent network."""

# Shapes: B completions, L remaining completions, T completion positions

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN
from triptych.models.diversify.rollout import Rollout
from triptych.models.diversify.sampling import COMPACT_BELOW, draw_tokens

# Checking on an accelerator whether all rows have ended stalls it, so do it every few tokens.
_TOKENS_BETWEEN_LOOKS = {"cpu": 1}
_OTHERWISE = 8


@torch.no_grad()
def sample_smiles(
    model: SmilesRNN,
    tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Rollout:
    """Sample molecules from the start token; all form one group.

    All random numbers are drawn at the start, so row b depends only on the numbers of row b.
    Finished rows leave the batch when they are a quarter of it.

    Args:
        model: The network, in eval mode, with its vocabulary.
        tokenizer: Its tokenizer, with start, end and padding tokens.
        num_rows: B.
        max_new_tokens: Longest completion, end token included.
        generator: Source of randomness; None: torch's CPU generator.
        temperature: Divisor of the logits; log-probabilities are those of the tempered
            distribution.

    Raises:
        FloatingPointError: if the network's probabilities are not finite.
    """
    device = model.output.weight.device
    source = torch.device("cpu") if generator is None else generator.device
    # The factor keeps rounded numbers below the last edge of the cumulative distribution.
    uniforms_TB = torch.rand(
        max_new_tokens, num_rows, dtype=torch.float64, generator=generator, device=source
    ).to(device) * (1 - 2**-50)
    ids_TB, log_prob_TB, sampled_TB = _write(model, tokenizer, uniforms_TB, temperature)

    length = int(sampled_TB.any(1).sum())
    token_mask_BT = sampled_TB[:length].t().contiguous()
    token_ids_BT = ids_TB[:length].t().contiguous()
    log_prob_BT = log_prob_TB[:length].t().masked_fill(~token_mask_BT, 0.0)
    log_prob_B = log_prob_BT.sum(1)
    if not torch.isfinite(log_prob_B).all():
        raise FloatingPointError(
            "the policy's probabilities are not finite: training has diverged. A smaller learning "
            "rate or gradient clipping usually helps"
        )
    bos_B1 = torch.full((num_rows, 1), tokenizer.bos_token_id, device=device, dtype=torch.int64)
    return Rollout(
        prompts=[""] * num_rows,
        texts=_decode(model, tokenizer, token_ids_BT, token_mask_BT),
        group_B=torch.zeros(num_rows, dtype=torch.int64, device=device),
        prompt_ids_BP=bos_B1,
        prompt_mask_BP=torch.ones_like(bos_B1, dtype=torch.bool),
        token_ids_BT=token_ids_BT,
        token_mask_BT=token_mask_BT,
        finished_B=((token_ids_BT == tokenizer.eos_token_id) & token_mask_BT).any(1),
        log_prob_B=log_prob_B,
        token_log_prob_BT=log_prob_BT,
    )


def _write(
    model: SmilesRNN, tokenizer: PreTrainedTokenizerBase, uniforms_TB: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample token ids, with log-probabilities and a mask of sampled tokens, each (T, B)."""
    longest, num_rows = uniforms_TB.shape
    device, end, pad = uniforms_TB.device, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids_TB = torch.full((longest, num_rows), pad, device=device, dtype=torch.int64)
    log_prob_TB = torch.zeros(longest, num_rows, device=device, dtype=torch.float32)
    sampled_TB = torch.zeros(longest, num_rows, dtype=torch.bool, device=device)
    rows_L = torch.arange(num_rows, device=device)
    ended_L = torch.zeros(num_rows, dtype=torch.bool, device=device)
    ids_L = torch.full((num_rows,), tokenizer.bos_token_id, device=device, dtype=torch.int64)
    state = model.first_state(num_rows)
    look_every = _TOKENS_BETWEEN_LOOKS.get(device.type, _OTHERWISE)
    for t in range(longest):
        logits_LV, state = model.step(ids_L, state)
        ids_L, log_prob_L = draw_tokens(logits_LV, uniforms_TB[t][rows_L], temperature)
        ids_TB[t, rows_L] = torch.where(ended_L, pad, ids_L)
        log_prob_TB[t, rows_L] = log_prob_L.float()
        sampled_TB[t, rows_L] = ~ended_L
        ended_L = ended_L | (ids_L == end)
        if (t + 1) % look_every == 0:
            num_open = len(ended_L) - int(ended_L.sum())
            if num_open == 0:
                break
            if num_open < COMPACT_BELOW * len(ended_L):
                open_L = ended_L.logical_not().nonzero().squeeze(1)
                rows_L, ids_L, ended_L = rows_L[open_L], ids_L[open_L], ended_L[open_L]
                state = tuple(part.index_select(1, open_L) for part in state)
    return ids_TB, log_prob_TB, sampled_TB


def _decode(
    model: SmilesRNN,
    tokenizer: PreTrainedTokenizerBase,
    token_ids_BT: Tensor,
    token_mask_BT: Tensor,
) -> list[str]:
    words = model.vocabulary
    assert words is not None
    silent = set(tokenizer.all_special_ids)
    lengths = token_mask_BT.sum(1).tolist()
    return [
        "".join(words[token] for token in ids[:length] if token not in silent)
        for ids, length in zip(token_ids_BT.tolist(), lengths, strict=True)
    ]
