"""Whether a model would write a given text by itself, found out without writing it."""

# Shapes: B batch, T tokens, S = T-1 predictions (position s predicts token s+1), C columns with a
# label in any row, V vocabulary

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from models.segment_mask import segment_attention_mask
from objectives.batch_nll import Batch
from objectives.language_modeling import IGNORED_LABEL, NextTokenNLL


class TeacherForced(NamedTuple):
    """Scores of the labelled tokens.

    Attributes:
        nll: Their negative log-likelihood.
        is_greedy_B: True where every label of a row is the likeliest token at its place, given the
            labels before it; also where a row has no label.
    """

    nll: NextTokenNLL
    is_greedy_B: Tensor


def teacher_forced(model: PreTrainedModel, batch: Batch) -> TeacherForced:
    """Score labelled tokens, and say of each row whether greedy decoding would write them.

    Greedy decoding from the tokens before the first label writes exactly the labels if and only if
    each of them is the argmax given the ones before it (by induction: until the first difference
    both see the same tokens). One forward pass thus tells what generation takes one for each token
    to tell. Labels must be adjacent in a row; with EOS among them, the text must end there, too.

    Logits are computed for the columns alone that have a label in some row.

    Args:
        model: A causal language model of `transformers`.
        batch: As for `batch_nll.batch_nll`, one document a row.

    Returns:
        As `TeacherForced`. In exact arithmetic it agrees with generation; where two tokens are
        equally likely to within rounding, the two may differ.
    """
    targets_BS = batch["labels"][:, 1:]
    keep_BS = targets_BS != IGNORED_LABEL
    columns_C = keep_BS.any(0).nonzero().squeeze(1)
    logits_BCV = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=segment_attention_mask(batch["segment_ids"]),
        use_cache=False,
        logits_to_keep=columns_C,
    ).logits
    logits_BCV = logits_BCV.to(torch.promote_types(logits_BCV.dtype, torch.float32))
    targets_BC = targets_BS[:, columns_C]
    nats_BC = cross_entropy(
        logits_BCV.flatten(0, 1),
        targets_BC.flatten(),
        reduction="none",
        ignore_index=IGNORED_LABEL,
    ).view_as(targets_BC)
    nats_BS = nats_BC.new_zeros(targets_BS.shape).index_copy(1, columns_C, nats_BC)
    is_right_BC = (logits_BCV.argmax(-1) == targets_BC) | (targets_BC == IGNORED_LABEL)
    return TeacherForced(NextTokenNLL(nats_BS, keep_BS), is_right_BC.all(1))
