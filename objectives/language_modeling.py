"""The loss of a causal language model, with all logits at once or in chunks.

Both functions return the same `NextTokenNLL`. It holds sums and counts instead of a mean, because
the mean of a step runs over the tokens of all ranks and all accumulated micro-batches:

    nll = chunked_next_token_nll(hidden_BTD, lm_head.weight, labels_BT)
    loss = nll.sum_nats / num_tokens_of_the_whole_step
"""

# Shapes: B batch, T tokens, S = T-1 predictions (position s predicts token s+1), N predictions
# whose label counts, C predictions in one chunk, D hidden width, V vocabulary

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy

from triptych.models.linear_nll import at_least_float32, linear_nll

IGNORED_LABEL = -100


class NextTokenNLL(NamedTuple):
    """The negative log-likelihood of every next token.

    Attributes:
        nats: (B, S), differentiable, 0 where the label is ignored; at least float32.
        keep_mask: (B, S), True where the label counts.
    """

    nats: Tensor
    keep_mask: Tensor

    @property
    def sum_nats(self) -> Tensor:
        """The sum over all predictions: a differentiable scalar, 0 without predictions."""
        return self.nats.sum()

    @property
    def num_tokens(self) -> Tensor:
        """The number of predicted tokens: an int64 scalar."""
        return self.keep_mask.sum()

    def num_bytes(self, num_bytes_BT: Tensor) -> Tensor:
        """Sum the bytes of the predicted tokens.

        Args:
            num_bytes_BT: UTF-8 bytes of each input token.

        Returns:
            An int64 scalar.
        """
        return (num_bytes_BT[:, 1:] * self.keep_mask).sum()


def next_token_nll(logits_BTV: Tensor, labels_BT: Tensor) -> NextTokenNLL:
    """Score every next token under the logits of a causal language model.

    Logits at t predict the label at t+1. The log-softmax runs in float32, for float64
    logits in float64.

    Args:
        logits_BTV: Unnormalised log-probabilities.
        labels_BT: int64 in [0, V), aligned with the input (not shifted), `IGNORED_LABEL` where
            nothing is to be predicted. The first column is never read.

    Returns:
        Negative log-likelihoods in nats, and the mask of labelled positions.

    Raises:
        ValueError: If the shapes of logits and labels do not agree.

    >>> import torch
    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0986123], [9.0, 9.0]]])  # ln 3
    >>> nll = next_token_nll(logits, torch.tensor([[IGNORED_LABEL, 0, 1]]))
    >>> nll.nats, nll.num_tokens  # ln 2 and ln 4/3
    (tensor([[0.6931, 0.2877]]), tensor(2))
    """
    _check_labels(labels_BT, logits_BTV, "logits_BTV")
    targets_BS = labels_BT[:, 1:]
    nll_BS = cross_entropy(
        at_least_float32(logits_BTV[:, :-1]).flatten(0, 1),
        targets_BS.flatten(),
        reduction="none",
        ignore_index=IGNORED_LABEL,
    ).view_as(targets_BS)
    return NextTokenNLL(nll_BS, targets_BS != IGNORED_LABEL)


def chunked_next_token_nll(
    hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, chunk_tokens: int = 1024
) -> NextTokenNLL:
    """Compute `next_token_nll(hidden_BTD @ weight_VD.T, labels_BT)` in far less memory.

    Logits exist for one chunk of predictions at a time, only at positions with a label, and are
    computed again in the backward pass (`linear_nll`). This takes two arrays of C V numbers instead
    of several of B T V, for a third more arithmetic in the output layer.

    Finding the labelled positions synchronises with an accelerator once. Second derivatives are not
    available.

    Args:
        hidden_BTD: Last hidden states, after the final norm.
        weight_VD: Weight of the output layer, which has no bias.
        labels_BT: As in `next_token_nll`.
        chunk_tokens: C, the largest number of predictions with logits in memory at once.

    Returns:
        As `next_token_nll`.

    Raises:
        ValueError: If shapes do not agree or `chunk_tokens` is not positive.

    >>> import torch
    >>> hidden, weight = torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[0.0], [1.0986123]])
    >>> labels = torch.tensor([[IGNORED_LABEL, 0, 1]])
    >>> chunked_next_token_nll(hidden, weight, labels, chunk_tokens=1).nats
    tensor([[0.6931, 0.2877]])
    """
    _check_labels(labels_BT, hidden_BTD, "hidden_BTD")
    if weight_VD.ndim != 2 or weight_VD.shape[1] != hidden_BTD.shape[2]:
        raise ValueError(
            f"weight_VD has shape {tuple(weight_VD.shape)}, but hidden_BTD is "
            f"{hidden_BTD.shape[2]} wide: give the output layer's weight as (vocabulary, width)."
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")

    targets_BS = labels_BT[:, 1:]
    keep_mask_BS = targets_BS != IGNORED_LABEL
    kept_N = keep_mask_BS.flatten().nonzero().squeeze(1)
    row_N = kept_N.div(targets_BS.shape[1], rounding_mode="floor")
    # A row of hidden states has one position more than a row of predictions.
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, kept_N + row_N)
    targets_N = targets_BS.flatten().index_select(0, kept_N)
    nll_N = linear_nll(hidden_ND, weight_VD, targets_N, chunk_tokens)
    nll_BS = nll_N.new_zeros(targets_BS.numel()).index_copy(0, kept_N, nll_N)
    return NextTokenNLL(nll_BS.view(targets_BS.shape), keep_mask_BS)


def _check_labels(labels_BT: Tensor, source: Tensor, name: str) -> None:
    if source.ndim != 3 or labels_BT.shape != source.shape[:2]:
        raise ValueError(
            f"labels_BT has shape {tuple(labels_BT.shape)} and {name} {tuple(source.shape)}: give "
            "one label for every input token, aligned with the input and not shifted."
        )
