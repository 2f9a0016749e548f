"""HellaSwag with the context of the endings read once: about half the work, the same numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import DocumentScore, DocumentScorer, ProbeSetting
from triptych.callbacks.remember.probes.multiple_choice import MultipleChoice
from triptych.datamodules.batches.packing import Document
from triptych.datamodules.batches.prompted_documents import prompt_length

# Shapes: E endings, P tokens of the context, L of the longest ending, V tokens of the vocabulary


class SharedContextChoices(MultipleChoice):
    """`MultipleChoice` on one process, with keys and values of a context kept for its endings."""

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the questions; see the base class."""
        super().prepare(setting)
        self._scorer: Any = _SharedContextScorer(self._scorer, self._documents_of.values())


class _SharedContextScorer:
    def __init__(self, scorer: DocumentScorer, items: Iterable[Sequence[int]]) -> None:
        self._documents = scorer._documents
        self._items = list(items)

    def score(
        self, model: PreTrainedModel, limit_batches: int | None = None
    ) -> dict[int, DocumentScore]:
        scores: dict[int, DocumentScore] = {}
        for places in self._items[:limit_batches]:
            found = score_endings(model, [self._documents[place] for place in places])
            scores |= dict(zip(places, found, strict=True))
        return scores


@torch.no_grad()
def score_endings(model: PreTrainedModel, documents: Sequence[Document]) -> list[DocumentScore]:
    """Score the labelled ends of documents that begin alike.

    Args:
        model: A causal language model that can keep keys and values.
        documents: The documents, each labelled from some token to its end.

    Returns:
        The scores, without bytes.
    """
    shared = _shared_length(documents)
    cache: Any = None
    if shared > 1:
        # The last token of the context is read with the endings, since it predicts their first.
        context_P = torch.tensor(documents[0].ids[: shared - 1].tolist(), device=model.device)
        context = model(input_ids=context_P[None], use_cache=True, logits_to_keep=1)
        cache = context.past_key_values
        cache.batch_repeat_interleave(len(documents))
    ends = [torch.tensor(d.ids[shared - 1 :].tolist(), device=model.device) for d in documents]
    labels = [torch.tensor(d.labels[shared - 1 :].tolist(), device=model.device) for d in documents]
    ids_EL, labels_EL = _padded(ends, 0), _padded(labels, -100)
    mask_EL = _padded([torch.ones_like(end) for end in ends], 0)
    seen = torch.ones(len(documents), shared - 1, dtype=mask_EL.dtype, device=model.device)
    logits_ELV = model(
        input_ids=ids_EL, attention_mask=torch.cat([seen, mask_EL], 1), past_key_values=cache
    ).logits
    targets_EL = labels_EL[:, 1:]
    # Flat, since a sum over the vocabulary that is not the last dimension is less precise.
    nats_EL = cross_entropy(
        logits_ELV[:, :-1].float().flatten(0, 1),
        targets_EL.flatten(),
        ignore_index=-100,
        reduction="none",
    ).view_as(targets_EL)
    totals, counts = nats_EL.double().sum(1).tolist(), (targets_EL != -100).sum(1).tolist()
    return [DocumentScore(nats, count, 0) for nats, count in zip(totals, counts, strict=True)]


def _shared_length(documents: Sequence[Document]) -> int:
    """Count the first tokens that all documents have in common and that none labels."""
    shortest = min(prompt_length(document) for document in documents)
    first = documents[0].ids[:shortest]
    alike = [int((document.ids[:shortest] == first).cumprod().sum()) for document in documents]
    return min(alike)


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
