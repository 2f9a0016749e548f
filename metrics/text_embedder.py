"""Embeddings of texts, under the name that configurations of earlier versions use."""

from triptych.objectives.text_embedder import Embedder, TextEmbedder, letter_counts

__all__ = ["Embedder", "TextEmbedder", "letter_counts"]
