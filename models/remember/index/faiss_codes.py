"""Candidates from faiss: keys compressed to codes by k-means, one faiss index per head."""

import warnings
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from triptych.models.remember.index.faiss_options import FaissOptions

# Shapes: B queries, H heads, D key width, C candidates, S slots, P positions (keys ever encoded)

Backend: TypeAlias = Literal["faiss-cpu", "faiss-gpu", "torch"]

# The numbers of sub-vectors that faiss's GPU kernels support.
_GPU_SUBVECTORS = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 48, 56, 64, 96)
# Coarse k-means: more iterations and points gain little for their time.
_LISTS_ITERATIONS = 10
_LISTS_POINTS = 64
# The fastest scan orders, as measured: four queries at a time, or list by list.
_FLAT_QUERY_BLOCKS = 0x44
_LISTS_IMPLEMENTATION = 11


def import_faiss() -> Any | None:
    """Return the faiss module, None if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's, on some Pythons
            import faiss
    except ImportError:
        return None
    return faiss


def choose_backend(options: FaissOptions, device: torch.device) -> Backend:
    """Choose the search for keys on this device.

    Raises:
        ValueError: if the options ask for faiss and it is not installed.
    """
    faiss = None if options.backend == "torch" else import_faiss()
    if faiss is None:
        if options.backend == "faiss":
            raise ValueError(
                "memory.index_args.backend is faiss, which is not installed: install faiss-cpu or "
                "faiss-gpu, or set it to auto"
            )
        return "torch"
    if device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        return "faiss-gpu"
    return "faiss-cpu" if device.type == "cpu" or options.backend == "faiss" else "torch"


def factory_name(options: FaissOptions, key_dim: int, num_slots: int, on_gpu: bool) -> str:
    """Return the description for `faiss.index_factory`.

    >>> factory_name(FaissOptions(), 64, 65536, on_gpu=False)
    'PQ32x4fs'
    >>> factory_name(FaissOptions(), 512, 1048576, on_gpu=False)
    'IVF1024,PQ256x4fsr'
    >>> factory_name(FaissOptions(num_centroids=256, num_subvectors=8), 64, 65536, on_gpu=False)
    'PQ8x8np'
    """
    num_lists = options.lists(num_slots)
    if on_gpu:
        wanted = options.num_subvectors or key_dim // 2
        fitting = [m for m in _GPU_SUBVECTORS if m <= max(wanted, 1) and key_dim % m == 0]
        return f"IVF{max(1, num_lists)},PQ{fitting[-1]}x8np"
    num_subvectors = options.subvectors(key_dim)
    # "np": no polysemous training, which takes most of the time and has no use here.
    codes = f"PQ{num_subvectors}" + ("x4fs" if options.num_centroids == 16 else "x8np")
    if num_lists == 0:
        return codes
    residuals = "r" if options.num_centroids == 16 else ""  # 8-bit IVF always has them
    return f"IVF{num_lists},{codes}{residuals}"


class FaissCodes:
    """The codes of the active slots' keys.

    Training is deterministic: the same keys and options give the same codebooks. New codes are
    appended. The code of a removed slot stays as a dead position until the next `encode`.

    Args:
        keys_HSD: Keys on any device, in any float dtype.
        active_S: bool, True for active slots; there are at least as many as centroids.
        options: The settings.
        gpu: CUDA device to search on; None for the CPU.
    """

    def __init__(
        self, keys_HSD: Tensor, active_S: Tensor, options: FaissOptions, gpu: int | None
    ) -> None:
        faiss = import_faiss()
        assert faiss is not None, "the caller checks for faiss first"
        self._faiss = faiss
        num_heads, self._num_slots, key_dim = keys_HSD.shape
        num_active = int(active_S.sum())
        self.name = factory_name(options, key_dim, num_active, gpu is not None)
        self._indices = []
        self._resources = None if gpu is None else faiss.StandardGpuResources()
        for head in range(num_heads):
            index = faiss.index_factory(key_dim, self.name, faiss.METRIC_INNER_PRODUCT)
            _set_up(index, options)
            index.train(_array(keys_HSD[head, active_S]))
            if gpu is not None:
                cloner = faiss.GpuClonerOptions()
                # Otherwise the look-up tables of many sub-vectors do not fit.
                cloner.useFloat16 = True
                index = faiss.index_cpu_to_gpu(self._resources, gpu, index, cloner)
            self._indices.append(index)
        self.encode(keys_HSD, active_S)

    def encode(self, keys_HSD: Tensor, active_S: Tensor) -> None:
        """Encode the active slots' keys again with the present codebooks."""
        for index in self._indices:
            index.reset()
        # The additional last entry is for faiss's -1, which means "nothing found".
        self._slot_of_P1 = np.full(1, -1, dtype=np.int64)
        self._position_of_S = np.full(self._num_slots, -1, dtype=np.int64)
        self.num_dead = 0
        self.add(keys_HSD, active_S.nonzero().squeeze(1).cpu())

    @property
    def num_positions(self) -> int:
        """Number of encoded keys, including the dead ones."""
        return len(self._slot_of_P1) - 1

    def add(self, keys_HSD: Tensor, ids: Tensor) -> None:
        """Encode the keys of additional slots."""
        slots = ids.cpu().numpy()
        for head, index in enumerate(self._indices):
            index.add(_array(keys_HSD[head, ids.to(keys_HSD.device)]))
        self._position_of_S[slots] = self.num_positions + np.arange(len(slots))
        self._slot_of_P1 = np.concatenate([self._slot_of_P1[:-1], slots, [-1]])

    def remove(self, ids: Tensor) -> None:
        """Stop returning these slots."""
        slots = ids.cpu().numpy()
        self._slot_of_P1[self._position_of_S[slots]] = -1
        self._position_of_S[slots] = -1
        self.num_dead += len(slots)

    def search(self, head: int, query_BD: Tensor, num_candidates: int) -> Tensor:
        """Find the slots with the highest scores of their codes.

        Returns:
            ids_BC: int64, best code first; -1 if nothing was found.
        """
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        count = min(num_candidates, self.num_positions)
        _, positions_BC = self._indices[head].search(_array(query_BD), count)
        return torch.from_numpy(self._slot_of_P1[positions_BC]).to(query_BD.device)

    def changed_share(self, keys_HSD: Tensor) -> float:
        """Compute the share of active slots with a code that no longer matches their key."""
        slots = np.flatnonzero(self._position_of_S >= 0)
        ids = torch.from_numpy(slots).to(keys_HSD.device)
        num_changed = 0
        for head, index in enumerate(self._indices):
            old, new = self._cpu_copy(index), self._cpu_copy(index)
            new.reset()
            new.add(_array(keys_HSD[head, ids]))
            old_PD, new_PD = _decoded(old)[self._position_of_S[slots]], _decoded(new)
            num_changed += int((old_PD != new_PD).any(1).sum())
        return num_changed / max(1, len(slots) * len(self._indices))

    def _cpu_copy(self, index: Any) -> Any:
        on_gpu = self._resources is not None
        return self._faiss.index_gpu_to_cpu(index) if on_gpu else self._faiss.clone_index(index)


def _set_up(index: Any, options: FaissOptions) -> None:
    """Set up fast, quiet k-means and the fastest scan order."""
    clusterings = [index.pq.cp]
    if hasattr(index, "nlist"):
        index.nprobe = options.probes(index.nlist)
        index.cp.niter, index.cp.max_points_per_centroid = _LISTS_ITERATIONS, _LISTS_POINTS
        clusterings.append(index.cp)
    for clustering in clusterings:
        clustering.min_points_per_centroid = 1  # faiss would print a warning
    if hasattr(index, "qbs"):
        index.qbs = _FLAT_QUERY_BLOCKS
        if hasattr(index, "nlist"):
            index.implem = _LISTS_IMPLEMENTATION


def _decoded(index: Any) -> np.ndarray[Any, Any]:
    """Decode the codes, in the order in which their keys were added."""
    if hasattr(index, "make_direct_map"):
        index.make_direct_map()
    decoded_PD: np.ndarray[Any, Any] = index.reconstruct_n(0, index.ntotal)
    return decoded_PD


def _array(vectors: Tensor) -> np.ndarray[Any, Any]:
    """Convert to faiss's input format: float32, contiguous, on the CPU."""
    return np.ascontiguousarray(vectors.detach().float().cpu().numpy())
