"""Ancestral sampling of many completions at once, with the log-probability of every token."""

# Shapes: G prompts, B = G num_samples completions, L remaining completions,
# P prompt positions, T completion positions, C = P + T, V vocabulary

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triptych.models.diversify.decoding_cache import attends_to_everything, decoding_cache
from triptych.models.linear_nll import at_least_float32, output_weight

#: The batch shrinks once the share of unfinished rows is below this.
COMPACT_BELOW = 0.75
#: Checking on an accelerator whether all rows have ended stalls it, so do it every few tokens.
_TOKENS_BETWEEN_LOOKS = {"cpu": 1}
_OTHERWISE = 8


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

    decoder = _Decoder(model, prompt_mask_GP, max_new_tokens)
    logits_LV = decoder.read_prompts(prompt_ids_GP, num_samples)
    ids_TB = torch.full((max_new_tokens, num_rows), pad_id, device=device)
    log_prob_TB = torch.zeros(max_new_tokens, num_rows, device=device, dtype=logits_LV.dtype)
    ended_TB = torch.ones(max_new_tokens, num_rows, device=device, dtype=torch.bool)
    ends = torch.tensor(list(end_ids), dtype=torch.int64, device=device)
    rows_L = torch.arange(num_rows, device=device)
    ended_L = torch.zeros(num_rows, dtype=torch.bool, device=device)
    look_every = _TOKENS_BETWEEN_LOOKS.get(device.type, _OTHERWISE)

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
                    open_L = ended_L.logical_not().nonzero().squeeze(1)
                    rows_L, ids_L, ended_L = rows_L[open_L], ids_L[open_L], ended_L[open_L]
                    decoder.keep(open_L)
        logits_LV = decoder.read_token(ids_L)

    # Otherwise a training pass would reuse autocast's cached casts, which have no gradient.
    torch.clear_autocast_cache()
    token_mask_BT = ended_TB.logical_not().T
    length = int(token_mask_BT.any(0).sum())
    token_mask_BT = token_mask_BT[:, :length].contiguous()
    token_ids_BT = ids_TB.T[:, :length].masked_fill(~token_mask_BT, pad_id)
    token_log_prob_BT = log_prob_TB.T[:, :length].masked_fill(~token_mask_BT, 0.0)
    if not torch.isfinite(token_log_prob_BT).all():
        raise FloatingPointError(
            "the policy's probabilities are not finite: training has diverged. A smaller "
            "learning rate or gradient clipping usually helps"
        )
    finished_B = (torch.isin(token_ids_BT, ends) & token_mask_BT).any(1)
    return Completions(token_ids_BT, token_mask_BT, token_log_prob_BT, finished_B)


def draw_tokens(logits_LV: Tensor, uniform_L: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each row; returns ids and log-probabilities."""
    if temperature != 1.0:
        logits_LV = logits_LV / temperature
    probability_LV = logits_LV.softmax(-1)
    # In float64, so that the sum does not lose the tail of a large vocabulary.
    cumulative_LV = probability_LV.cumsum(-1, dtype=torch.float64)
    mark_L1 = uniform_L[:, None] * cumulative_LV[:, -1:]
    ids_L1 = torch.searchsorted(cumulative_LV, mark_L1, right=True)
    ids_L1 = ids_L1.clamp_(max=logits_LV.shape[1] - 1)  # only where logits are nan
    return ids_L1[:, 0], probability_LV.gather(1, ids_L1)[:, 0].log()


class _Decoder:
    """Runs the model token by token with a cache.

    Args:
        model: The model.
        prompt_mask_GP: True for tokens of the prompts.
        max_new_tokens: Largest number of further tokens.
    """

    def __init__(self, model: PreTrainedModel, prompt_mask_GP: Tensor, max_new_tokens: int) -> None:
        config = model.config
        self.model = model
        self.weight_VD = output_weight(model)
        # If the mask format is known, masks are built here once, not by the model at every token.
        self.makes_masks = config._attn_implementation == "sdpa" and attends_to_everything(config)
        self.cache = decoding_cache(config, prompt_mask_GP.shape[1] + max_new_tokens)
        room_GT = prompt_mask_GP.new_ones(len(prompt_mask_GP), max_new_tokens)
        self.seen_LC = torch.cat([prompt_mask_GP, room_GT], 1)
        self.position_L1 = prompt_mask_GP.sum(1, keepdim=True)
        self.num_read = prompt_mask_GP.shape[1]

    def read_prompts(self, ids_GP: Tensor, num_samples: int) -> Tensor:
        """Read the prompts once; returns the first logits of all completions."""
        mask_GP = self.seen_LC[:, : self.num_read]
        mask = mask_GP
        if self.makes_masks:
            causal_PP = mask_GP.new_ones(self.num_read, self.num_read).tril()
            own_PP = torch.eye(self.num_read, dtype=torch.bool, device=mask_GP.device)
            # A padded position attends to itself, so that no row of the softmax is empty.
            mask = ((mask_GP[:, None, :] & causal_PP) | own_PP)[:, None]
        position_GP = (mask_GP.cumsum(1) - 1).clamp(min=0)
        logits_GV = self._logits(ids_GP, mask, position_GP)
        if num_samples == 1:
            return logits_GV
        self.cache.batch_repeat_interleave(num_samples)
        self.seen_LC = self.seen_LC.repeat_interleave(num_samples, 0)
        self.position_L1 = self.position_L1.repeat_interleave(num_samples, 0)
        return logits_GV.repeat_interleave(num_samples, 0)

    def read_token(self, ids_L: Tensor) -> Tensor:
        """Read the next token of every row; returns the logits of the following one."""
        self.num_read += 1
        mask = self.seen_LC[:, : self.num_read]
        if self.makes_masks:
            mask = mask[:, None, None]
        logits_LV = self._logits(ids_L[:, None], mask, self.position_L1)
        self.position_L1 = self.position_L1 + 1
        return logits_LV

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows."""
        self.cache.batch_select_indices(rows)
        self.seen_LC = self.seen_LC[rows]
        self.position_L1 = self.position_L1[rows]

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.weight_VD is None:
            return at_least_float32(self.model(**inputs, logits_to_keep=1).logits[:, -1])
        last_LD = self.model.base_model(**inputs).last_hidden_state[:, -1]
        return at_least_float32(torch.nn.functional.linear(last_LD, self.weight_VD))
