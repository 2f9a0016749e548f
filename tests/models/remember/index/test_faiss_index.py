"""The faiss index against brute force, on structured keys and on those of a trained model."""

import copy
import io
import pickle
import sys
import time

import pytest
import torch
from torch import Tensor

from triptych.datamodules.embedded.articles import embedded_articles
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.index import faiss_codes
from triptych.models.remember.index.faiss_codes import (
    FaissCodes,
    code_bytes,
    factory_name,
    import_faiss,
)
from triptych.models.remember.index.faiss_index import FaissSlotIndex
from triptych.models.remember.index.faiss_options import FaissOptions
from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.remember.values.value_table import ValueTable

needs_faiss = pytest.mark.skipif(import_faiss() is None, reason="faiss is not installed")
CODES = pytest.param(FaissOptions(exact_below=0, backend="faiss"), marks=needs_faiss, id="faiss")
LISTS = pytest.param(
    FaissOptions(exact_below=0, backend="faiss", num_lists=8, num_probes=4),
    marks=needs_faiss,
    id="faiss-lists",
)
FORMER = "models.faiss_index.FaissSlotIndex"
TORCH = pytest.param(FaissOptions(backend="torch"), id="torch")


def clustered_product_keys(
    num_keys: int, num_heads: int = 2, dim: int = 16, qk_norm: bool = True
) -> ProductKeyIndex:
    """Make product keys like trained ones: half keys in clusters."""
    index = ProductKeyIndex(num_keys, num_heads, dim, qk_norm)
    centres = torch.randn(num_heads, 2, 24, dim // 2)
    chosen = torch.randint(24, (num_heads, 2, num_keys, 1)).expand(-1, -1, -1, dim // 2)
    noise = torch.randn(num_heads, 2, num_keys, dim // 2)
    index.keys.data = centres.gather(2, chosen) + 0.7 * noise
    return index


def queries_near(index: FaissSlotIndex, num_queries: int, noise: float = 1.0) -> Tensor:
    """Make queries near keys of the index, like those of a trained model."""
    ids = torch.randint(index.num_slots, (num_queries,))
    keys = index.keys[:, ids].transpose(0, 1)
    return keys + noise * keys.std() * torch.randn_like(keys)


def index_of(options: FaissOptions, num_slots: int = 1024, **sizes) -> FaissSlotIndex:
    index = FaissSlotIndex(
        num_slots, options=options, **({"num_heads": 2, "query_dim": 16} | sizes)
    )
    index.keys.data.normal_()
    return index


def best(index: FaissSlotIndex, query: Tensor, num_kept: int) -> Tensor:
    """Find the true top K among active slots, by definition."""
    scores = torch.einsum("bhd,hsd->bhs", query.double(), index.keys.double())
    scores[..., ~index.active] = -torch.inf
    return scores.topk(num_kept).indices


def overlap(found: Tensor, true: Tensor) -> float:
    pairs = zip(found.flatten(0, 1).tolist(), true.flatten(0, 1).tolist(), strict=True)
    return sum(len(set(one) & set(two)) for one, two in pairs) / found.numel()


# -- finding the best -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [FaissOptions(backend="torch"), FaissOptions(exact_below=1025)], ids=str
)
def test_without_codes_the_search_is_exact(options):
    index = index_of(options)
    query = torch.randn(70, 2, 16)
    assert overlap(index.search(query, 32), best(index, query, 32)) == 1.0
    assert index.recall_at_k(query, 32) == 1.0


@needs_faiss
@pytest.mark.parametrize("qk_norm", [True, False])
def test_default_settings_find_the_best_of_65536_slots(qk_norm):
    product = clustered_product_keys(256, dim=64, qk_norm=qk_norm)
    index = FaissSlotIndex.from_product_keys(product)
    assert index.backend == "faiss-cpu"
    query = queries_near(index, 256) / (8 if qk_norm else 1)
    found = index.search(query, 32)
    true = product.search(query, 32)  # exact, and another algorithm
    assert overlap(found, true) >= 0.95
    assert "codes='PQ32x4fs'" in repr(index)


@needs_faiss
@pytest.mark.parametrize(
    "settings",
    [
        {"num_lists": 64, "num_probes": 24},
        pytest.param({"num_centroids": 256, "num_subvectors": 8}, marks=pytest.mark.slow),
        pytest.param(
            {"num_centroids": 256, "num_lists": 64, "num_probes": 24}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_other_settings_find_most(settings):
    product = clustered_product_keys(64, dim=32, qk_norm=False)
    options = FaissOptions(**settings, exact_below=0, num_candidates=256)
    index = FaissSlotIndex.from_product_keys(product, options)
    query = queries_near(index, 64)
    recall = index.recall_at_k(query, 32)
    assert recall == pytest.approx(overlap(index.search(query, 32), best(index, query, 32)))
    assert recall >= 0.9


@needs_faiss
def test_recall_falls_with_too_few_candidates():
    product = clustered_product_keys(64, dim=32, qk_norm=False)
    few, many = (
        FaissSlotIndex.from_product_keys(product, FaissOptions(exact_below=0, num_candidates=count))
        for count in (8, 512)
    )
    query = queries_near(few, 64)
    assert few.recall_at_k(query, 8) < 0.8 < many.recall_at_k(query, 8)


@needs_faiss
@pytest.mark.slow
def test_a_search_of_65536_slots_takes_about_a_second():
    index = FaissSlotIndex.from_product_keys(clustered_product_keys(256, num_heads=4, dim=64))
    query = queries_near(index, 4096)
    start = time.process_time()  # of one thread, whatever else the machine does
    index.refresh()
    trained = time.process_time()
    index.search(query, 32)
    searched = time.process_time()
    assert trained - start < 10
    assert searched - trained < 4  # 1.1 s on an otherwise busy core


@pytest.mark.parametrize("options", [CODES, LISTS, TORCH])
def test_best_first_distinct_and_in_range(options):
    index = index_of(options)
    query = torch.randn(40, 2, 16)
    ids, scores = index.lookup(query, 8)
    assert ids.dtype == torch.int64
    assert ids.shape == scores.shape == (40, 2, 8)
    assert (scores.diff(dim=-1) <= 1e-5).all()
    assert all(len(set(row)) == 8 for row in ids.flatten(0, 1).tolist())
    assert index.search(query[:0], 8).shape == (0, 2, 8)


@needs_faiss
def test_rows_with_too_few_candidates_are_searched_exactly():
    options = FaissOptions(exact_below=0, num_lists=128, num_probes=1)
    index = index_of(options)  # lists of about 8 slots, 32 wanted
    query = torch.randn(30, 2, 16)
    assert overlap(index.search(query, 32), best(index, query, 32)) == 1.0


@pytest.mark.parametrize("options", [CODES, TORCH])
def test_a_query_that_is_not_a_number_still_reads_slots(options):
    index = index_of(options, num_slots=600)
    index.remove(torch.arange(10))
    ids = index.search(torch.full((3, 2, 16), torch.nan), 4)
    assert ids.min() >= 10
    assert ids.max() < 600


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [CODES, TORCH])
def test_scores_are_dot_products_whatever_searches(options):
    index = index_of(options)
    query = torch.randn(9, 2, 16, requires_grad=True)
    ids, scores = index.lookup(query, 5)
    heads = torch.arange(2).view(1, 2, 1)
    expected = torch.einsum("bhd,bhkd->bhk", query, index.keys[heads, ids])
    torch.testing.assert_close(scores, expected)
    factor = torch.randn_like(scores)
    (ours,) = torch.autograd.grad((scores * factor).sum(), query)
    (theirs,) = torch.autograd.grad((expected * factor).sum(), query)
    torch.testing.assert_close(ours, theirs)


def test_keys_are_fixed_unless_they_are_to_be_trained():
    fixed = index_of(FaissOptions())
    assert [name for name, _ in fixed.named_parameters()] == []
    trained = index_of(FaissOptions(train_keys=True))
    query = torch.randn(9, 2, 16)
    ids, scores = trained.lookup(query, 5)
    scores.sum().backward()
    read = torch.zeros(2, 1024, dtype=torch.bool)
    for head in range(2):
        read[head, ids[:, head].flatten()] = True
    assert torch.equal(trained.keys.grad.ne(0).any(2), read)
    assert fixed.state_dict().keys() == trained.state_dict().keys()


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_keys_score_as_the_product_keys_they_come_from(qk_norm, dtype):
    product = clustered_product_keys(20, num_heads=3, qk_norm=qk_norm).to(dtype).eval()
    if qk_norm:
        product.query_gain.data.uniform_(0.5, 2.0)
    index = FaissSlotIndex.from_product_keys(product)
    assert (index.num_slots, index.num_heads, index.query_dim) == (400, 3, 16)
    assert not index.training
    query = 5 * torch.randn(6, 3, 16, dtype=dtype)
    ids = torch.arange(400).expand(6, 3, 400)
    torch.testing.assert_close(index.score(query, ids), product.score(query, ids))
    found, scores = index.lookup(query, 8)
    expected, expected_scores = product.lookup(query, 8)
    assert torch.equal(found, expected)
    torch.testing.assert_close(scores, expected_scores)


def test_qk_norm_of_keys_put_in():
    # A half (1, 3): mean 2, deviation 1, so (-1, 1), whatever its size; the eps of 1e-5 is small.
    index = FaissSlotIndex(4, 1, 4, qk_norm=True, options=FaissOptions(num_active=0))
    index.add(torch.tensor([[[1.0, 3.0, 20.0, 60.0]]]))
    torch.testing.assert_close(index.keys[0, 0], torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    index.query_gain.data.fill_(3.0)
    # Query halves become (-1, 1) and (1, -1); times 3 / sqrt(2).
    score = index.score(torch.tensor([[[0.0, 8.0, 5.0, 1.0]]]), torch.tensor([[[0]]]))
    torch.testing.assert_close(score.item(), 3 / 2**0.5 * (2 - 2), atol=1e-3, rtol=0)
    score = index.score(torch.tensor([[[0.0, 8.0, 1.0, 5.0]]]), torch.tensor([[[0]]]))
    torch.testing.assert_close(score.item(), 3 / 2**0.5 * 4, atol=1e-3, rtol=0)


# -- slots that come and go -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [CODES, LISTS, TORCH])
def test_removed_slots_are_never_returned(options):
    index = index_of(options)
    query = torch.randn(50, 2, 16)
    gone = index.search(query, 8).unique()[:60]  # few enough for codes to stay
    index.remove(gone)
    assert index.num_active == 1024 - 60
    for _ in range(2):
        found = index.search(query, 8)
        assert not torch.isin(found, gone).any()
        assert overlap(found, best(index, query, 8)) > 0.8
        index.remove(index.active.nonzero().squeeze(1)[:200])  # enough to encode anew


@pytest.mark.parametrize("options", [CODES, LISTS, TORCH])
def test_added_slots_are_found_and_take_freed_ids_first(options):
    start = FaissOptions(**(vars(options) | {"num_active": 1000}))
    index = index_of(start)
    assert index.num_active == 1000
    assert index.search(torch.randn(200, 2, 16), 8).max() < 1000
    index.remove(torch.tensor([500, 7]))
    keys = 30 * torch.randn(5, 2, 16)
    ids = index.add(keys)
    assert ids.tolist() == [7, 500, 1000, 1001, 1002]
    torch.testing.assert_close(index.keys[:, ids].transpose(0, 1), keys)
    assert torch.equal(index.search(keys, 1), ids.view(5, 1, 1).expand(5, 2, 1))
    index.refresh()
    assert torch.equal(index.search(keys, 1), ids.view(5, 1, 1).expand(5, 2, 1))


@needs_faiss
def test_any_sequence_of_changes_keeps_search_and_slots_together():
    index = index_of(FaissOptions(exact_below=0, num_active=700, num_candidates=300))
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(20, 2, 16)
    for _ in range(30):
        active = index.active.nonzero().squeeze(1)
        if torch.rand((), generator=generator) < 0.5:
            index.remove(active[torch.randperm(len(active), generator=generator)[:40]])
        elif index.num_active <= 1024 - 40:
            index.add(torch.randn(40, 2, 16, generator=generator))
        found = index.search(query, 8)
        assert index.active[found].all()
        assert all(len(set(row)) == 8 for row in found.flatten(0, 1).tolist())
        assert overlap(found, best(index, query, 8)) > 0.9


def test_a_memory_can_start_empty_and_grow():
    index = index_of(FaissOptions(num_active=0), num_slots=64)
    with pytest.raises(ValueError, match="top_k=2, but only 0 slots are active: add slots"):
        index.search(torch.randn(1, 2, 16), 2)
    assert index.add(torch.randn(2, 2, 16)).tolist() == [0, 1]
    assert sorted(index.search(torch.randn(1, 2, 16), 2)[0, 0].tolist()) == [0, 1]


def test_growing_beyond_the_table_is_refused():
    index = index_of(FaissOptions(num_active=60), num_slots=64)
    with pytest.raises(ValueError, match=r"cannot add 5 slots: 4 of the value table's 64 are free"):
        index.add(torch.randn(5, 2, 16))
    assert index.num_active == 60


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 64], r"slots \[64\] are not active"),
        ([-1], r"slots \[-1\] are not active"),
        ([5, 61], r"slots \[61\] are not active"),
        ([5, 5], "given twice"),
    ],
)
def test_slots_that_cannot_be_removed(ids, message):
    index = index_of(FaissOptions(num_active=60), num_slots=64)
    with pytest.raises(ValueError, match=message):
        index.remove(torch.tensor(ids))
    assert index.num_active == 60


def test_keys_of_another_shape_are_refused():
    index = index_of(FaissOptions(num_active=0), num_slots=64)
    with pytest.raises(ValueError, match=r"keys of shape \(3, 1, 16\): give .* \(any, 2, 16\)"):
        index.add(torch.randn(3, 1, 16))


# -- codes and keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [CODES, LISTS])
def test_staleness_is_the_share_of_codes_that_changed(options):
    index = index_of(options)
    index.remove(torch.arange(24))
    assert index.staleness() == 0.0  # nothing is encoded yet
    index.refresh()
    assert index.staleness() == 0.0
    index.keys[0, 24:224] = torch.randn(200, 16)  # 200 of the 2,000 keys of active slots
    assert index.staleness() == pytest.approx(0.1, abs=0.005)
    query = torch.randn(50, 2, 16)
    before = index.recall_at_k(query, 8)
    index.refresh()
    assert index.staleness() == 0.0
    assert index.recall_at_k(query, 8) > before


def test_an_exact_search_is_never_stale():
    index = index_of(FaissOptions(backend="torch"))
    index.refresh()
    index.keys.normal_()
    assert index.staleness() == 0.0
    assert index.recall_at_k(torch.randn(20, 2, 16), 8) == 1.0


@pytest.mark.parametrize("options", [CODES, LISTS])
def test_copies_train_the_same_codes_again(options):
    index = index_of(options)
    query = torch.randn(50, 2, 16)
    ids = index.search(query, 8)
    assert index._codes is not None
    for again in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert again._codes is None
        assert torch.equal(again.search(query, 8), ids)
    file = io.BytesIO()
    torch.save(index.state_dict(), file)
    file.seek(0)
    other = index_of(options)
    assert not torch.equal(other.search(query, 8), ids)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.search(query, 8), ids)


@needs_faiss
def test_the_codes_follow_the_keys_precision():
    index = index_of(FaissOptions(exact_below=0))
    index.refresh()
    index.double()
    assert index._codes is None
    query = torch.randn(20, 2, 16)
    assert index.lookup(query, 8)[1].dtype == torch.float64
    index.bfloat16()
    ids, scores = index.lookup(query, 8)
    assert scores.dtype == torch.bfloat16
    assert overlap(ids, best(index, query.bfloat16(), 8)) > 0.8


def test_a_memory_layer_with_it_runs_under_autocast():
    index = FaissSlotIndex(1024, 2, 16, qk_norm=True, options=FaissOptions(exact_below=0))
    layer = MemoryLayer(12, 4, index, ValueTable(1024, 12))
    layer.recording = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, 5, 12)).square().mean().backward()
    assert layer.last_ids.shape == (2, 5, 2, 4)
    grads = [p.grad for p in (*layer.parameters(), layer.values.weight)]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


# -- backends -------------------------------------------------------------------------------------


def test_without_faiss_torch_searches_exactly(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = index_of(FaissOptions(exact_below=0))
    assert index.backend == "torch"
    assert "backend='torch'" in repr(index)
    assert index.recall_at_k(torch.randn(20, 2, 16), 8) == 1.0
    with pytest.raises(ValueError, match="which is not installed: install faiss-cpu"):
        index_of(FaissOptions(exact_below=0, backend="faiss")).search(torch.randn(1, 2, 16), 8)


class GpuFaiss:
    """The part of faiss-gpu that the index uses, on the CPU: tests the calls, not the kernels."""

    def __init__(self, faiss):
        self._faiss = faiss
        self.moved, self.resources = [], set()

    def __getattr__(self, name):
        return getattr(self._faiss, name)

    class StandardGpuResources:
        pass

    class GpuClonerOptions:
        useFloat16 = False

    def get_num_gpus(self):
        return 1

    def index_cpu_to_gpu(self, resources, device, index, options):
        self.resources.add(id(resources))
        assert isinstance(resources, self.StandardGpuResources)
        assert options.useFloat16
        assert index.by_residual  # faiss-gpu takes no other, and only 8 bits
        assert index.pq.nbits == 8
        self.moved.append(device)
        return OnGpu(index)

    def index_gpu_to_cpu(self, index):
        return self._faiss.clone_index(index.on_cpu)


class OnGpu:
    """An index that takes and gives tensors alone, by faiss's own adapter of torch tensors."""

    def __init__(self, on_cpu):
        self.on_cpu = on_cpu

    def reset(self):
        self.on_cpu.reset()

    def add(self, vectors):
        assert type(vectors) is torch.Tensor
        self.on_cpu.add(vectors)

    def search(self, queries, count):
        assert type(queries) is torch.Tensor
        assert count <= 2048  # faiss-gpu refuses more
        scores, positions = self.on_cpu.search(queries, count)
        assert type(positions) is torch.Tensor
        return scores, positions


@pytest.fixture
def gpu_faiss(monkeypatch) -> GpuFaiss:
    gpu = GpuFaiss(import_faiss())
    monkeypatch.setattr(faiss_codes, "import_faiss", lambda: gpu)
    faiss_codes._gpu_resources.cache_clear()
    yield gpu
    faiss_codes._gpu_resources.cache_clear()


@needs_faiss
def test_the_calls_for_a_gpu(gpu_faiss):
    options = FaissOptions(num_lists=4, num_probes=4, num_candidates=128)
    assert faiss_codes.choose_backend(options, torch.device("cuda", 1)) == "faiss-gpu"
    keys = torch.randn(2, 1024, 16)
    codes = FaissCodes(keys, torch.ones(1024, dtype=torch.bool), options, gpu=1)
    assert gpu_faiss.moved == [1, 1]
    assert codes.name == "IVF4,PQ4x8np"
    query = torch.randn(30, 16)
    true = (query @ keys[0].T).topk(8).indices
    found = codes.search(0, query, 128)
    hits = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True))
    assert hits / true.numel() > 0.95
    assert codes.changed_share(keys) == 0.0
    gone = found[0, :5]
    codes.remove(gone)
    assert not set(gone.tolist()) & set(codes.search(0, query[:1], 128).flatten().tolist())
    codes.add(keys, gone)
    assert set(gone.tolist()) <= set(codes.search(0, query[:1], 128).flatten().tolist())
    FaissCodes(keys, torch.ones(1024, dtype=torch.bool), options, gpu=1)
    assert len(gpu_faiss.resources) == 1  # each would reserve memory of its own


@needs_faiss
def test_a_gpu_gives_at_most_2048_candidates(gpu_faiss):
    keys = torch.randn(1, 3000, 8)
    codes = FaissCodes(keys, torch.ones(3000, dtype=torch.bool), FaissOptions(), gpu=0)
    assert codes.search(0, torch.randn(2, 8), 2500).shape == (2, 2048)


@needs_faiss
def test_shorter_codes_on_a_gpu_are_said(gpu_faiss):
    keys, active = torch.randn(1, 300, 512), torch.ones(300, dtype=torch.bool)
    with pytest.warns(RuntimeWarning, match=r"width 512 have 64 bytes on a GPU, 128 on a CPU"):
        FaissCodes(keys, active, FaissOptions(), gpu=0)


@pytest.mark.parametrize("settings", [{}, {"num_centroids": 256}])
@pytest.mark.parametrize("key_dim", [16, 32, 64, 96, 128, 256])
def test_codes_on_a_gpu_are_as_long_as_on_a_cpu(settings, key_dim):
    options = FaissOptions(**settings)
    name = factory_name(options, key_dim, 65_536, on_gpu=True)
    length = code_bytes(options, key_dim)
    assert name == f"IVF1,PQ{length}x8np"


@needs_faiss
def test_two_faiss_packages_are_said(monkeypatch):
    both = {"faiss": ["faiss-gpu", "faiss-cpu", "faiss-gpu"]}
    monkeypatch.setattr(faiss_codes.importlib.metadata, "packages_distributions", lambda: both)
    faiss_codes._warn_of_two_packages.cache_clear()
    try:
        with pytest.warns(
            RuntimeWarning, match="faiss-cpu and faiss-gpu are installed.*pip uninstall -y"
        ):
            import_faiss()
    finally:
        faiss_codes._warn_of_two_packages.cache_clear()


@pytest.mark.parametrize(
    ("settings", "key_dim", "num_slots", "on_gpu", "name"),
    [
        ({}, 64, 65_536, False, "PQ32x4fs"),
        ({}, 512, 1 << 20, False, "IVF1024,PQ256x4fsr"),
        ({}, 15, 65_536, False, "PQ5x4fs"),
        ({"num_centroids": 256}, 64, 65_536, False, "PQ16x8np"),
        ({"num_centroids": 256, "num_lists": 32}, 64, 65_536, False, "IVF32,PQ16x8np"),
        ({}, 64, 65_536, True, "IVF1,PQ16x8np"),
        ({}, 512, 1 << 20, True, "IVF1024,PQ64x8np"),
        ({"num_subvectors": 8}, 512, 1 << 20, True, "IVF1024,PQ8x8np"),
    ],
)
def test_what_faiss_is_asked_for(settings, key_dim, num_slots, on_gpu, name):
    assert factory_name(FaissOptions(**settings), key_dim, num_slots, on_gpu) == name


# -- settings -------------------------------------------------------------------------------------


def test_from_config():
    memory = MemoryConfig(
        num_keys=8,
        num_heads=3,
        top_k=4,
        qk_norm=True,
        index="triptych.models.remember.index.faiss_index.FaissSlotIndex",
        index_args={"num_active": 10, "num_candidates": 40},
    ).resolved(24, 4)
    index = FaissSlotIndex.from_config(memory)
    assert (index.num_slots, index.num_heads, index.query_dim) == (64, 3, 12)
    assert (index.num_active, index.qk_norm) == (10, True)
    assert index.options.candidates(4, 64) == 40
    assert MemoryConfig(**memory.to_dict()) == memory


@pytest.mark.parametrize(
    "saved", [{"num_active": 10, "backend": "torch"}, FaissOptions(num_active=10, backend="torch")]
)
def test_the_former_name_of_its_settings(saved):
    memory = MemoryConfig(
        num_keys=8, top_k=4, index="models.faiss_index.FaissSlotIndex", faiss=saved
    )
    index = FaissSlotIndex.from_config(memory.resolved(16, 2))
    assert index.options == FaissOptions(num_active=10, backend="torch")
    assert memory.faiss is None
    with pytest.raises(ValueError, match=r"memory\.faiss and memory.index_args are the same"):
        MemoryConfig(index=memory.index, faiss=saved, index_args={"num_active": 10})


def test_settings_that_do_not_exist():
    memory = MemoryConfig(index=FORMER, index_args={"num_activ": 10})
    message = "do not fit FaissOptions: .*unexpected keyword argument 'num_activ'.*num_active"
    with pytest.raises(ValueError, match=message):
        FaissSlotIndex.from_config(memory.resolved(16, 2))


def test_initialisation():
    # U(-1/4, 1/4) for D = 16.
    keys = FaissSlotIndex(1024, 2, 16).keys
    assert 0.24 < keys.abs().max().item() <= 0.25
    normal = FaissSlotIndex(64, 2, 16, qk_norm=True).keys.unflatten(-1, (2, 8))
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 64, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_centroids": 17}, "num_centroids must be 16 or 256, got 17"),
        (
            {"backend": "annoy"},
            "backend must be auto, faiss or torch, got 'annoy'",
        ),
        (
            {"num_candidates": 0},
            "num_candidates must be a whole number of at least 1, got 0",
        ),
        ({"num_active": "ten"}, "num_active must be a whole number of at least 0, got 'ten'"),
        ({"train_keys": "no"}, "train_keys must be true or false, got 'no'"),
        (
            {"num_lists": -1},
            "num_lists must be a whole number of at least 0, got -1",
        ),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        FaissOptions(**settings)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_slots": 0}, "sizes must be positive, got num_slots=0"),
        ({"query_dim": 15, "qk_norm": True}, "query_dim=15 must be even"),
        ({"options": FaissOptions(num_subvectors=3)}, "num_subvectors=3 does not divide .* 16"),
        ({"options": FaissOptions(num_active=65)}, "num_active=65 is more than the 64 slots"),
    ],
)
def test_sizes_that_cannot_work(sizes, message):
    settings = {"num_slots": 64, "num_heads": 2, "query_dim": 16} | sizes
    with pytest.raises(ValueError, match=message):
        FaissSlotIndex(**settings)


# -- a trained model ------------------------------------------------------------------------------


@needs_faiss
@pytest.mark.slow
def test_default_settings_on_the_65536_slots_of_a_trained_model():
    text = "\n".join(row["text"] for row in embedded_articles("train")).encode()
    held_out = "\n".join(row["text"] for row in embedded_articles("validation")).encode()
    base = BaseLMConfig(hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=64)
    memory = MemoryConfig(layers=[1], num_keys=256, top_k=32, value_dim=16, qk_norm=True)
    model = build_memory_lm(base, memory, vocab_size=256)
    (layer,) = memory_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // 64 * 64].view(-1, 64)
    first_loss = loss = None
    for _ in range(300):
        batch = rows[torch.randint(len(rows), (8,))]
        loss = model(input_ids=batch, labels=batch).loss
        first_loss = first_loss or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first_loss

    model.eval()
    test = torch.frombuffer(bytearray(held_out), dtype=torch.uint8).long()[: 32 * 64].view(32, 64)
    asked = []
    handle = layer.query.register_forward_hook(lambda module, inputs, out: asked.append(out))
    with torch.no_grad():
        nll = model(input_ids=test, labels=test, use_cache=False).loss.item()
    handle.remove()
    query = asked[0].reshape(-1, 4, 32)
    product = layer.index
    layer.index = FaissSlotIndex.from_product_keys(product)
    assert layer.index.recall_at_k(query, 32) >= 0.95
    assert overlap(layer.index.search(query, 32), product.search(query, 32)) >= 0.95
    with torch.no_grad():
        approximate = model(input_ids=test, labels=test, use_cache=False).loss.item()
    assert approximate == pytest.approx(nll, rel=2e-3)
