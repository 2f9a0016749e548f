"""Candidates from faiss: keys compressed to codes by k-means, one faiss index per head.

On a GPU, keys, queries and candidates are device tensors throughout; only training and the check of
old codes pass through the CPU.
"""

import functools
import importlib
import importlib.metadata
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
# faiss's GPU kernels select at most so many candidates of a query.
_GPU_CANDIDATES = 2048
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
    _warn_of_two_packages()
    return faiss


@functools.cache
def _warn_of_two_packages() -> None:
    """Warn, once, if several packages have written into the one folder `faiss`."""
    found = importlib.metadata.packages_distributions().get("faiss", [])
    names = sorted(set(found))
    if len(names) > 1:
        warnings.warn(
            f"{' and '.join(names)} are installed, and all own `import faiss`: files of the one "
            "installed last have replaced the others', so a search may run on the CPU or fail. "
            f"Keep one: pip uninstall -y {' '.join(names)}; pip install faiss-gpu (or faiss-cpu)",
            RuntimeWarning,
            stacklevel=3,
        )


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

    A code on a GPU has one byte a sub-vector. It is as long as on a CPU, or as the GPU kernels
    allow for this width: 64 bytes of 128 for 512.

    >>> factory_name(FaissOptions(), 64, 65536, on_gpu=True)
    'IVF1,PQ16x8np'
    >>> factory_name(FaissOptions(), 512, 1048576, on_gpu=True)
    'IVF1024,PQ64x8np'
    """
    num_lists = options.lists(num_slots)
    num_subvectors = options.subvectors(key_dim)
    if on_gpu:
        wanted = options.num_subvectors or code_bytes(options, key_dim)
        fitting = [m for m in _GPU_SUBVECTORS if m <= wanted and key_dim % m == 0]
        return f"IVF{max(1, num_lists)},PQ{fitting[-1]}x8np"
    # "np": no polysemous training, which takes most of the time and has no use here.
    codes = f"PQ{num_subvectors}" + ("x4fs" if options.num_centroids == 16 else "x8np")
    if num_lists == 0:
        return codes
    residuals = "r" if options.num_centroids == 16 else ""  # 8-bit IVF always has them
    return f"IVF{num_lists},{codes}{residuals}"


def code_bytes(options: FaissOptions, key_dim: int) -> int:
    """Return the bytes of a key's code on a CPU."""
    bits = 4 if options.num_centroids == 16 else 8
    return -(-options.subvectors(key_dim) * bits // 8)


@functools.cache
def _gpu_resources(gpu: int) -> Any:
    """Return the scratch memory of a GPU, some 1.5 GB, which all layers share."""
    faiss = import_faiss()
    assert faiss is not None
    # Lets faiss's indices take and give device tensors, on torch's current stream.
    importlib.import_module("faiss.contrib.torch_utils")
    return faiss.StandardGpuResources()


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
        self._resources = None if gpu is None else _gpu_resources(gpu)
        if gpu is not None:
            self._warn_if_shorter(options, key_dim)
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
        self._slot_of_P1 = active_S.new_full((1,), -1, dtype=torch.int64)
        self._position_of_S = active_S.new_full((self._num_slots,), -1, dtype=torch.int64)
        self.num_dead = 0
        self.add(keys_HSD, active_S.nonzero().squeeze(1))

    @property
    def num_positions(self) -> int:
        """Number of encoded keys, including the dead ones."""
        return len(self._slot_of_P1) - 1

    def add(self, keys_HSD: Tensor, ids: Tensor) -> None:
        """Encode the keys of additional slots."""
        slots = ids.to(self._slot_of_P1.device)
        for head, index in enumerate(self._indices):
            index.add(self._given(keys_HSD[head, ids.to(keys_HSD.device)]))
        places = torch.arange(len(slots), device=slots.device)
        self._position_of_S[slots] = self.num_positions + places
        end = self._slot_of_P1[-1:]
        self._slot_of_P1 = torch.cat([self._slot_of_P1[:-1], slots, end])

    def remove(self, ids: Tensor) -> None:
        """Stop returning these slots."""
        slots = ids.to(self._slot_of_P1.device)
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
        if self._resources is not None:
            count = min(count, _GPU_CANDIDATES)
        _, found_BC = self._indices[head].search(self._given(query_BD), count)
        positions_BC = torch.as_tensor(found_BC, dtype=torch.int64, device=self._slot_of_P1.device)
        return self._slot_of_P1[positions_BC].to(query_BD.device)

    def changed_share(self, keys_HSD: Tensor) -> float:
        """Compute the share of active slots with a code that no longer matches their key."""
        slots = (self._position_of_S >= 0).nonzero().squeeze(1)
        ids = slots.to(keys_HSD.device)
        places = self._position_of_S[slots].cpu().numpy()
        num_changed = 0
        for head, index in enumerate(self._indices):
            old, new = self._cpu_copy(index), self._cpu_copy(index)
            new.reset()
            new.add(_array(keys_HSD[head, ids]))
            old_PD, new_PD = _decoded(old)[places], _decoded(new)
            num_changed += int((old_PD != new_PD).any(1).sum())
        return num_changed / max(1, len(slots) * len(self._indices))

    def _given(self, vectors: Tensor) -> Any:
        """Convert to the input of the indices: a device tensor for a GPU, else an array."""
        if self._resources is None:
            return _array(vectors)
        return vectors.detach().float().contiguous()

    def _warn_if_shorter(self, options: FaissOptions, key_dim: int) -> None:
        own, on_cpu = int(self.name.split("PQ")[1].split("x")[0]), code_bytes(options, key_dim)
        if options.num_subvectors is None and own < on_cpu:
            warnings.warn(
                f"codes of keys of width {key_dim} have {own} bytes on a GPU, {on_cpu} on a CPU: "
                "faiss's GPU kernels allow no more. Fewer of the best slots may be found: compare "
                "`recall_at_k`, and raise memory.index_args.num_candidates, or set "
                "memory.index_args.backend to torch",
                RuntimeWarning,
                stacklevel=3,
            )

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
