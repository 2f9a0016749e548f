"""A test whether greedy decoding would produce a given text, in one forward pass."""

# Shapes: B batch, T tokens, S = T-1 predictions (position s predicts token s+1), N predictions
# whose label counts, D hidden width, V vocabulary

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from triptych.models.segment_mask import packed_attention
from triptych.objectives.batch_nll import Batch
from triptych.objectives.language_modeling import IGNORED_LABEL, NextTokenNLL


class TeacherForced(NamedTuple):
    """Scores of the labelled tokens.

    Attributes:
        nll: Their negative log-likelihood.
        is_greedy_B: True where every label of a row is the most likely token at its position, given
            the labels before it; also for rows without labels.
    """

    nll: NextTokenNLL
    is_greedy_B: Tensor


def teacher_forced(model: PreTrainedModel, batch: Batch) -> TeacherForced:
    """Score labelled tokens, and find out for each row whether greedy decoding would write them.

    Greedy decoding from the tokens before the first label writes exactly the labels if and only if
    each label is the argmax given the ones before it (by induction: up to the first difference both
    have the same context). One forward pass thus replaces one pass per generated token. Labels must
    be adjacent in a row; if EOS is among them, the text must end there too.

    Logits are computed at the labels only, by the model's own output layer.

    Args:
        model: A causal language model of `transformers`.
        batch: As for `batch_nll.batch_nll`, one document a row.

    Returns:
        The scores. In exact arithmetic they agree with generation; rounding may make a difference
        where two tokens are equally likely.
    """
    targets_BS = batch["labels"][:, 1:]
    keep_BS = targets_BS != IGNORED_LABEL
    row_N, position_N = keep_BS.nonzero(as_tuple=True)
    with _output_layer_at(model, row_N, position_N):
        (logits_NV,) = model(
            input_ids=batch["input_ids"],
            use_cache=False,
            **packed_attention(model.config, batch["segment_ids"], batch["position_ids"]),
        ).logits
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    targets_N = targets_BS[row_N, position_N]
    nats_N = cross_entropy(logits_NV, targets_N, reduction="none")
    nats_BS = nats_N.new_zeros(targets_BS.shape).masked_scatter(keep_BS, nats_N)
    num_missed_B = torch.zeros_like(keep_BS[:, 0], dtype=torch.int64)
    num_missed_B.index_add_(0, row_N, (logits_NV.argmax(-1) != targets_N).long())
    return TeacherForced(NextTokenNLL(nats_BS, keep_BS), num_missed_B == 0)


@contextmanager
def _output_layer_at(model: PreTrainedModel, row_N: Tensor, position_N: Tensor) -> Iterator[None]:
    """Restrict the output layer to some positions, as a batch of one row (1, N, D).

    Families that cap or scale logits do so elementwise, so their logits stay correct.
    """

    def select(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *others = inputs
        return (hidden_BTD[row_N, position_N].unsqueeze(0), *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
