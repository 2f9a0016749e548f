"""Ancestral sampling of many completions at once, with the log-probability of every token."""

# Shapes: G prompts, B = G num_samples completions, L remaining completions,
# P prompt positions, T completion positions, C = P + T, V vocabulary

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triptych.models.diversify.cast_weights import weights_cast_once
from triptych.models.diversify.decoder import Decoder, StaticDecoder

#: The batch shrinks once the share of unfinished rows is below this.
COMPACT_BELOW = 0.75
#: Checking on an accelerator whether all rows have ended stalls it: this often in a sampling, and
#: not more often than every few tokens.
_MOST_LOOKS = 8
_TOKENS_BETWEEN_LOOKS = 8


@dataclass(frozen=True)
class Completions:
    """Sampled completions; the rows of a prompt are adjacent.

    Attributes:
        token_ids_BT: int64, right-padded; includes the end token, if sampled.
        token_mask_BT: bool; True marks a sampled token.
        token_log_prob_BT: Log-probability of every sampled token in nats, 0 elsewhere.
        finished_B: bool; True if an end token was sampled.
    """

    token_ids_BT: Tensor
    token_mask_BT: Tensor
    token_log_prob_BT: Tensor
    finished_B: Tensor


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids_GP: Tensor,
    prompt_mask_GP: Tensor,
    num_samples: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    compact: bool = True,
    static: bool | None = None,
) -> Completions:
    """Sample `num_samples` completions of every prompt from the model's distribution.

    Each prompt is read only once. Every token is drawn by inverting its cumulative distribution at
    a uniform number, and all these numbers are drawn at the start. So row b depends only on the
    numbers of row b, and the generator advances by the same amount for any lengths. Finished rows
    leave the batch when they are a quarter of it. This changes a sample only if another order of
    float additions tips a draw (probability about 1e-6 per token). Memory layers are read without a
    gradient, so sampling records no accesses.

    Args:
        model: A causal language model, in eval mode.
        prompt_ids_GP: int64, left-padded.
        prompt_mask_GP: bool; True marks a token. Every row has at least one, the last.
        num_samples: Completions per prompt.
        max_new_tokens: T, the longest completion, end token included.
        end_ids: Tokens that end a completion; may be empty.
        pad_id: Token after the end of a completion.
        generator: Source of randomness; None: torch's CPU generator.
        temperature: Divisor of the logits; log-probabilities are those of the tempered
            distribution.
        compact: Whether finished rows leave the batch.
        static: Whether steps have fixed shapes, which CUDA graphs need (`StaticDecoder`); None: on
            CUDA, for models that support it.

    Raises:
        FloatingPointError: if the model's logits are not finite.
    """
    device = prompt_ids_GP.device
    num_rows = len(prompt_ids_GP) * num_samples
    # The factor keeps rounded numbers below the last edge of the cumulative distribution.
    source = torch.device("cpu") if generator is None else generator.device
    uniforms_TB = torch.rand(
        max_new_tokens, num_rows, dtype=torch.float64, generator=generator, device=source
    ).to(device) * (1 - 2**-50)

    if static is None:
        static = device.type == "cuda" and StaticDecoder.supports(model)
    # Filled on the device, since a copy from the host would wait for it.
    ends = torch.empty(len(end_ids), dtype=torch.int64, device=device)
    for place, end_id in enumerate(end_ids):
        ends[place : place + 1].fill_(end_id)
    with weights_cast_once(model):
        decoder = (StaticDecoder if static else Decoder)(model, prompt_mask_GP, max_new_tokens)
        logits_BV = decoder.read_prompts(prompt_ids_GP, num_samples)
        ids_TB, log_prob_TB, ended_TB = _write(
            decoder, logits_BV, uniforms_TB, ends, pad_id, temperature, compact
        )

    # Otherwise a training pass would reuse autocast's cached casts, which have no gradient.
    torch.clear_autocast_cache()
    token_mask_BT = ended_TB.logical_not().T
    # Read together, since the host waits for the device.
    length, is_finite = torch.stack(
        [token_mask_BT.any(0).sum(), log_prob_TB.masked_fill(ended_TB, 0.0).isfinite().all()]
    ).tolist()
    token_mask_BT = token_mask_BT[:, :length].contiguous()
    token_ids_BT = ids_TB.T[:, :length].masked_fill(~token_mask_BT, pad_id)
    token_log_prob_BT = log_prob_TB.T[:, :length].masked_fill(~token_mask_BT, 0.0)
    if not is_finite:
        raise FloatingPointError(
            "the policy's probabilities are not finite: training has diverged. A smaller "
            "learning rate or gradient clipping usually helps"
        )
    finished_B = (torch.isin(token_ids_BT, ends) & token_mask_BT).any(1)
    return Completions(token_ids_BT, token_mask_BT, token_log_prob_BT, finished_B)


def _write(
    decoder: Decoder,
    logits_BV: Tensor,
    uniforms_TB: Tensor,
    ends: Tensor,
    pad_id: int,
    temperature: float,
    compact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample ids, with log-probabilities and a mask of rows that ended before, each (T, B)."""
    max_new_tokens, num_rows = uniforms_TB.shape
    device = logits_BV.device
    ids_TB = torch.full((max_new_tokens, num_rows), pad_id, device=device)
    log_prob_TB = torch.zeros(max_new_tokens, num_rows, device=device, dtype=logits_BV.dtype)
    ended_TB = torch.ones(max_new_tokens, num_rows, device=device, dtype=torch.bool)
    rows_L = torch.arange(num_rows, device=device)
    ended_L = torch.zeros(num_rows, dtype=torch.bool, device=device)
    look_every = 1
    if device.type != "cpu":
        look_every = max(_TOKENS_BETWEEN_LOOKS, max_new_tokens // _MOST_LOOKS)
    logits_LV = logits_BV

    for t in range(max_new_tokens):
        everyone = len(rows_L) == num_rows
        uniform_L = uniforms_TB[t] if everyone else uniforms_TB[t][rows_L]
        ids_L, log_prob_L = draw_tokens(logits_LV, uniform_L, temperature)
        ended_TB[t].index_copy_(0, rows_L, ended_L)
        ids_TB[t].index_copy_(0, rows_L, ids_L)
        log_prob_TB[t].index_copy_(0, rows_L, log_prob_L)
        if t + 1 == max_new_tokens:
            break
        if len(ends):
            ended_L = ended_L | (ids_L == ends if len(ends) == 1 else torch.isin(ids_L, ends))
            if (t + 1) % look_every == 0:
                num_open = len(ended_L) - int(ended_L.sum())
                if num_open == 0:
                    break
                if compact and num_open < COMPACT_BELOW * len(ended_L):
                    size = decoder.rows_to_keep(num_open)
                    if size < len(ended_L):
                        kept = ended_L.to(torch.uint8).argsort(stable=True)[:size].sort().values
                        rows_L, ids_L, ended_L = rows_L[kept], ids_L[kept], ended_L[kept]
                        decoder.keep(kept)
        logits_LV = decoder.read_token(ids_L)
    return ids_TB, log_prob_TB, ended_TB


def draw_tokens(logits_LV: Tensor, uniform_L: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each row; returns ids and log-probabilities."""
    if temperature != 1.0:
        logits_LV = logits_LV / temperature
    probability_LV = logits_LV.softmax(-1)
    invert = _invert if probability_LV.device.type == "cpu" else _invert_by_blocks
    ids_L1 = invert(probability_LV, uniform_L[:, None])
    ids_L1 = ids_L1.clamp_(max=logits_LV.shape[1] - 1)  # only where logits are nan
    return ids_L1[:, 0], probability_LV.gather(1, ids_L1)[:, 0].log()


def _invert(probability_LV: Tensor, uniform_L1: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds the number."""
    # In float64, so that the sum does not lose the tail of a large vocabulary.
    cumulative_LV = probability_LV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative_LV, uniform_L1 * cumulative_LV[:, -1:], right=True)


def _invert_by_blocks(probability_LV: Tensor, uniform_L1: Tensor) -> Tensor:
    """Do the same in two steps: find the block of tokens, then the token within it.

    It needs no cumulative sum over the vocabulary in float64. On CUDA such a sum raises an error
    under `use_deterministic_algorithms`, and takes 8 bytes a token of the vocabulary and row.
    """
    size = math.isqrt(probability_LV.shape[1] - 1) + 1
    block_LNS = torch.nn.functional.pad(probability_LV, (0, -probability_LV.shape[1] % size))
    block_LNS = block_LNS.unflatten(1, (-1, size))
    mass_LN = block_LNS.sum(-1, dtype=torch.float64)
    upto_LN = mass_LN @ _upper_ones(mass_LN.shape[1], mass_LN.device)
    mark_L1 = uniform_L1 * upto_LN[:, -1:]
    number_L1 = torch.searchsorted(upto_LN, mark_L1, right=True).clamp_(max=mass_LN.shape[1] - 1)
    chosen_LS = block_LNS.gather(1, number_L1[..., None].expand(-1, -1, size))[:, 0].double()
    within_LS = chosen_LS @ _upper_ones(size, mass_LN.device)
    mark_L1 = mark_L1 - (upto_LN - mass_LN).gather(1, number_L1)
    # Rounding must not carry the mark over the end of its block.
    mark_L1 = mark_L1.clamp_min(0).minimum(within_LS[:, -1:] * (1 - 2**-50))
    return number_L1 * size + torch.searchsorted(within_LS, mark_L1, right=True)


@functools.lru_cache(maxsize=8)
def _upper_ones(size: int, device: torch.device) -> Tensor:
    """Return a matrix whose product with rows is their cumulative sum."""
    return torch.ones(size, size, dtype=torch.float64, device=device).triu()
