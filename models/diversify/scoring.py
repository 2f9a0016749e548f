"""Log-probabilities of given completions under a causal language model, token by token."""

# Shapes: B completions, P prompt positions, T completion positions; R rows of a pass, S positions
# of a pass, N tokens scored at once, G prompts of a part, W its longest prompt, X hidden width

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from triptych.models.diversify.decoding_cache import attends_to_everything
from triptych.models.diversify.prompt_cache import prompt_cache, shared_prompts
from triptych.models.diversify.scoring_plan import Part, Pass, plan_scoring
from triptych.models.linear_nll import (
    at_least_float32,
    float32_output_layer,
    linear_nll,
    linear_nll_and_entropy,
    nll_and_entropy,
    output_weight,
)
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.value_table import counting_only


def completion_log_prob(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_ids_BT: Tensor,
    token_mask_BT: Tensor,
    chunk_tokens: int = 1024,
    share_prompts: bool = True,
    micro_batch_tokens: int | None = None,
    plan: list[Part] | None = None,
) -> Tensor:
    """Score every sampled token given its prompt and the tokens before it.

    If completions share prompts, each prompt is read once; all its completions use its keys, values
    and gradient. Otherwise prompt and completion are joined without padding between them, and
    causal attention needs no mask for the padding at the end. Rows of similar length form a pass.
    The output layer runs only at positions that predict a sampled token, chunk by chunk, so the
    logits of all tokens never exist at once (`linear_nll`; families that rescale their logits are
    the exception). Padding is no access of a memory layer, and each read of a shared prompt is one
    access.

    With `micro_batch_tokens` the batch is scored part by part, and only one part at a time has a
    graph in memory: the backward pass computes each part again when it gets there, except the last
    one, and drops it before the next. So any loss of the result has its exact gradient, also one
    that needs all rows, by one call of `backward`. This costs up to a third more arithmetic.

    Args:
        model: A causal language model.
        prompt_ids_BP: int64, left-padded.
        prompt_mask_BP: bool; True marks a token. Every row has at least one.
        token_ids_BT: int64, right-padded.
        token_mask_BT: bool; True marks a sampled token; those of a row come first.
        chunk_tokens: Largest number of tokens with logits in memory at once.
        share_prompts: Whether to read a prompt once for all its completions, if this saves enough.
        micro_batch_tokens: Largest number of tokens with a graph in memory at once, padding
            included; rows of one prompt are together where they fit. None: all.
        plan: From `scoring_plan` of the same batch, which the host then need not read again.

    Returns:
        Log-probabilities (B, T) in nats, at least float32, 0 where nothing was sampled;
        differentiable in the model's parameters.
    """
    if plan is None:
        plan = scoring_plan(
            model, prompt_ids_BP, prompt_mask_BP, token_mask_BT, share_prompts, micro_batch_tokens
        )
    reader = _Reader(model, chunk_tokens)
    return _negative_scores(reader, prompt_ids_BP, token_ids_BT, plan)[0]


def completion_log_prob_and_entropy(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_ids_BT: Tensor,
    token_mask_BT: Tensor,
    chunk_tokens: int = 1024,
    plan: list[Part] | None = None,
) -> tuple[Tensor, Tensor]:
    """Score every sampled token, and compute the entropy of the prediction that it was drawn from.

    Arguments as `completion_log_prob`, and as cheap: the entropy over the vocabulary is computed
    from the same logits, chunk by chunk.

    Returns:
        Log-probabilities and entropies, each (B, T) in nats, at least float32, 0 where nothing was
        sampled; differentiable in the model's parameters.
    """
    if plan is None:
        plan = scoring_plan(model, prompt_ids_BP, prompt_mask_BP, token_mask_BT)
    reader = _Reader(model, chunk_tokens, with_entropy=True)
    log_prob_BT, negative_BT = _negative_scores(reader, prompt_ids_BP, token_ids_BT, plan)
    return log_prob_BT, -negative_BT


def _negative_scores(
    reader: "_Reader", prompt_ids_BP: Tensor, token_ids_BT: Tensor, plan: list[Part]
) -> Tensor:
    """Return the negative of what the reader computes of each sampled token: (scores, B, T)."""
    all_ids = torch.cat([prompt_ids_BP, token_ids_BT], 1).flatten()
    targets = token_ids_BT.flatten()
    scores, places = [], []
    for number, part in enumerate(plan):
        if len(plan) > 1:
            # Each part casts the weights anew, so that their gradients add up in float32.
            torch.clear_autocast_cache()
        place_N = torch.cat([one.place_N for one in reader.passes(part)])
        target_N = targets.index_select(0, place_N)
        if number + 1 < len(plan) and torch.is_grad_enabled():
            # In eval mode nothing is random. The backward pass begins with the last part.
            score_N = checkpoint(
                reader, all_ids, target_N, part, use_reentrant=False, preserve_rng_state=False
            )
        else:
            score_N = reader(all_ids, target_N, part)
        scores.append(score_N)
        places.append(place_N)
    scores_SN, place_N = torch.cat(scores, -1), torch.cat(places)
    flat = scores_SN.new_zeros(len(scores_SN), token_ids_BT.numel())
    return flat.index_copy(1, place_N, -scores_SN).view(-1, *token_ids_BT.shape)


def scoring_plan(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    token_mask_BT: Tensor,
    share_prompts: bool = True,
    micro_batch_tokens: int | None = None,
) -> list[Part]:
    """Plan `completion_log_prob`; models with the same config have the same plan.

    A prompt is read once only by models that take our masks and a cache.
    """
    config = model.config
    can_share = (
        share_prompts
        and output_weight(model) is not None
        and config._attn_implementation == "sdpa"
        and attends_to_everything(config)
    )
    return plan_scoring(prompt_ids_BP, prompt_mask_BP, token_mask_BT, can_share, micro_batch_tokens)


class _Reader:
    """Reads a part of a batch and scores its sampled tokens."""

    def __init__(
        self, model: PreTrainedModel, chunk_tokens: int, with_entropy: bool = False
    ) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.with_entropy = with_entropy
        self.tables = value_tables(model)
        self.weight_VD = output_weight(model)

    @staticmethod
    def passes(part: Part) -> list[Pass]:
        """Return the passes in the order of their tokens in the result."""
        return [*part.passes] if part.prompts is None else [part.prompts, *part.passes]

    def __call__(self, all_ids: Tensor, target_N: Tensor, part: Part) -> Tensor:
        """Return the negative log-likelihood of the part's sampled tokens, and their entropy.

        One row, (1, N), or two with the entropy, (2, N).

        Args:
            all_ids: The flattened (B, P + T) ids of prompts and completions.
            target_N: The sampled tokens, in the order of `passes`.
            part: The part.
        """
        if part.prompts is None:
            states = [self._read_whole(all_ids, one) for one in part.passes]
        else:
            states = self._read_prompts_once(all_ids, part.prompts, part.passes)
        states_NX = torch.cat(states)
        if self.weight_VD is None:  # X is the vocabulary
            logits_NV = at_least_float32(states_NX)
            if self.with_entropy:
                return torch.stack(nll_and_entropy(logits_NV, target_N))
            return cross_entropy(logits_NV, target_N, reduction="none")[None]
        rest = (self.weight_VD, target_N, self.chunk_tokens)
        if self.with_entropy:
            return torch.stack(linear_nll_and_entropy(states_NX, *rest))
        return linear_nll(states_NX, *rest)[None]

    def _read_whole(self, all_ids: Tensor, one: Pass) -> Tensor:
        """Read prompt and completion of every row."""
        ids_RS, real_RS = _padded(all_ids, one)
        with counting_only(self.tables, real_RS.flatten()), float32_output_layer(self.model):
            if self.weight_VD is None:
                states_RSX = self.model(input_ids=ids_RS, use_cache=False).logits
            else:
                read = self.model.base_model(input_ids=ids_RS, use_cache=False)
                states_RSX = read.last_hidden_state
        picked_NX: Tensor = states_RSX.flatten(0, 1).index_select(0, one.pick_N)
        return picked_NX

    def _read_prompts_once(
        self, all_ids: Tensor, prompts: Pass, passes: tuple[Pass, ...]
    ) -> list[Tensor]:
        """Read every prompt, then every completion with the keys and values of its prompt."""
        ids_GW, real_GW = _padded(all_ids, prompts)
        cache = prompt_cache(self.model.config)
        with counting_only(self.tables, real_GW.flatten()):
            states_GWX = self.model.base_model(
                input_ids=ids_GW, past_key_values=cache, use_cache=True
            ).last_hidden_state
        picked = [states_GWX.flatten(0, 1).index_select(0, prompts.pick_N)]
        for one in passes:
            assert one.prompt_R is not None
            assert one.start_R is not None
            ids_RS, real_RS = _padded(all_ids, one)
            rows, length = ids_RS.shape
            offset_S = torch.arange(length, device=ids_RS.device)
            causal_RSS = (offset_S[:, None] >= offset_S).expand(rows, length, length)
            before_RW = real_GW.index_select(0, one.prompt_R)
            before_RSW = before_RW[:, None].expand(rows, length, real_GW.shape[1])
            with counting_only(self.tables, real_RS.flatten()):
                states_RSX = self.model.base_model(
                    input_ids=ids_RS,
                    attention_mask=torch.cat([before_RSW, causal_RSS], 2)[:, None],
                    position_ids=one.start_R[:, None] + offset_S,
                    past_key_values=shared_prompts(cache, one.prompt_R),
                    use_cache=True,
                ).last_hidden_state
            picked.append(states_RSX.flatten(0, 1).index_select(0, one.pick_N))
        return picked


def _padded(all_ids: Tensor, one: Pass) -> tuple[Tensor, Tensor]:
    """Return ids and mask of a pass, (R, S); the mask is True for the tokens of a row."""
    ids_RS = all_ids.index_select(0, one.index_RS.flatten()).view(one.index_RS.shape)
    offset_S = torch.arange(ids_RS.shape[1], device=ids_RS.device)
    return ids_RS, offset_S < one.length_R[:, None]
