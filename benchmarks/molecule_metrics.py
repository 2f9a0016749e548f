"""How fast are internal diversity and #Circles, and do they agree with their references?

`python -m benchmarks.molecule_metrics [--quick] [--molecules FILE] [--out FILE]`

The input is 10,000 molecules from a file with a column `smiles`, or generated from embedded ones.
Every side starts from fingerprints in its own format.

IntDiv1 (Morgan radius 2, 1024 bits, self-pairs included) against

- the dense computation of MOSES: float32 zeros and ones, matrix products of 5,000 x 5,000,
  similarity matrices in NumPy, both halves of the symmetric matrix. The published package (molsets
  0.3.1) requires pomegranate 0.12.0, which does not build on Python 3.11, so a reimplementation is
  timed;
- RDKit's BulkTanimotoSimilarity over the lower triangle.

#Circles (t = 0.75, 1024 bits) against RDKit's LeaderPicker and the loop of the authors (each
molecule against all circles so far, in Python over BulkTanimotoSimilarity), all in the same order;
then the program of the authors with its chunks and shuffles. `maxmin` calls RDKit's MaxMinPicker,
so only its time is reported.

Without `--quick`, also 100,000 molecules: ours against LeaderPicker, and the peak resident memory
of a separate process that computes both metrics.

Peak memory in the tables counts tensors, without the memory of NumPy and RDKit.
"""

import multiprocessing
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import DataStructs
from rdkit.SimDivFilters import rdSimDivPickers
from torch import Tensor

from triptych.benchmarks.paired import PairedTimer, Side, most_resident_bytes
from triptych.benchmarks.report import (
    Report,
    at_least,
    at_most,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)
from triptych.datamodules.embedded.molecules import grow_molecules
from triptych.datamodules.sources.record_files import BadRowError, Row, file_rows
from triptych.metrics.diversify.molecules.circles import (
    NUM_CHUNKS,
    bit_vectors,
    chunked,
    leader,
    maxmin,
)
from triptych.metrics.diversify.molecules.fingerprints import morgan_fingerprints, unpack
from triptych.metrics.diversify.molecules.internal_diversity import internal_diversity

# Shapes: N molecules, K bits, W = K / 64 words

THRESHOLD = 0.75
DENSE_TILE = 5000
LEAST_OVER_DENSE = 2.5
LARGEST_DIFFERENCE = 1e-6
MOST_BYTES_AT_100K = 1e9


def molecules(count: int, file: Path | None) -> list[str]:
    """Read the first `count` molecules of a file, or generate as many."""
    if file is not None:
        return [_smiles(row) for row in islice(file_rows(file), count)]
    return grow_molecules(count)


def _smiles(row: Row | BadRowError) -> str:
    if isinstance(row, BadRowError):
        raise row
    return str(row.values["smiles"])


def dense_diversity(bits_NK: np.ndarray) -> float:
    """Compute IntDiv1 as MOSES does, see the module docstring."""
    sums_N, counts_N = np.zeros(len(bits_NK)), np.zeros(len(bits_NK))
    for left in range(0, len(bits_NK), DENSE_TILE):
        left_LK = torch.tensor(bits_NK[left : left + DENSE_TILE]).float()
        for right in range(0, len(bits_NK), DENSE_TILE):
            right_KR = torch.tensor(bits_NK[right : right + DENSE_TILE]).float().T
            common = left_LK @ right_KR
            union = left_LK.sum(1, keepdim=True) + right_KR.sum(0, keepdim=True) - common
            similarity = (common / union).numpy()
            similarity[np.isnan(similarity)] = 1
            sums_N[right : right + DENSE_TILE] += similarity.sum(0)
            counts_N[right : right + DENSE_TILE] += len(similarity)
    return float(1 - np.mean(sums_N / counts_N))


def bulk_diversity(vectors: list[Any]) -> float:
    """Compute IntDiv1 from RDKit similarities of the lower triangle."""
    below = sum(
        sum(DataStructs.BulkTanimotoSimilarity(vectors[row], vectors[:row]))
        for row in range(1, len(vectors))
    )
    return 1 - (2 * below + len(vectors)) / len(vectors) ** 2


def picked_leaders(vectors: list[Any]) -> list[int]:
    """Compute circles with RDKit's LeaderPicker."""
    picker = rdSimDivPickers.LeaderPicker()
    return list(picker.LazyBitVectorPick(vectors, len(vectors), THRESHOLD))


def looped_leaders(vectors: list[Any], order: list[int]) -> list[int]:
    """Compute circles with the loop of the authors, in the given order."""
    taken: list[int] = []
    kept: list[Any] = []
    for index in order:
        likeness = DataStructs.BulkTanimotoSimilarity(vectors[index], kept)
        if not kept or 1 - max(likeness) > THRESHOLD:
            taken.append(index)
            kept.append(vectors[index])
    return taken


def looped_chunks(vectors: list[Any], seed: int) -> list[int]:
    """Compute circles with the program of the authors: three rounds of chunks and shuffles."""
    rng = np.random.default_rng(seed)
    left = list(range(len(vectors)))
    for num_chunks in NUM_CHUNKS:
        parts = [
            looped_leaders(vectors, part.tolist()) for part in np.array_split(left, num_chunks)
        ]
        left = [index for part in parts for index in part]
        rng.shuffle(left)
    return looped_leaders(vectors, left)


def compare(report: Report, timer: PairedTimer, packed_NW: Tensor) -> None:
    """Time all sides on one set and check that they agree."""
    size = len(packed_NW)
    bits_NK, vectors = unpack(packed_NW.cpu()).numpy().view(np.uint8), bit_vectors(packed_NW)
    found: dict[str, Any] = {}

    def side(name: str, run: Callable[[], Any]) -> Side:
        def keep() -> None:
            found[name] = run()

        return Side(name, keep)

    diversity = [
        side("IntDiv1: ours", lambda: float(internal_diversity(packed_NW))),
        side("IntDiv1: dense, as MOSES", lambda: dense_diversity(bits_NK)),
        side("IntDiv1: RDKit bulk", lambda: bulk_diversity(vectors)),
    ]
    report.add(timer.compare("IntDiv1", size, diversity))
    circles = [
        side("Circles: ours", lambda: leader(packed_NW, THRESHOLD)),
        side("Circles: LeaderPicker", lambda: picked_leaders(vectors)),
        side("Circles: loop over bulk", lambda: looped_leaders(vectors, list(range(size)))),
    ]
    report.add(timer.compare("Circles", size, circles))
    chunks = [
        side("chunked Circles: ours", lambda: chunked(packed_NW, THRESHOLD)),
        side("chunked Circles: loop over bulk", lambda: looped_chunks(vectors, 0)),
    ]
    report.add(timer.compare("chunked Circles", size, chunks))
    report.add(
        timer.compare("maxmin", size, [side("maxmin", lambda: maxmin(packed_NW, THRESHOLD))])
    )
    report.more["values"] = {
        name: len(value) if isinstance(value, list) else value for name, value in found.items()
    }
    ours = found["IntDiv1: ours"]
    report.checks |= {
        f"IntDiv1, speed-up over dense@{size}": at_least(
            report.ratios[f"IntDiv1: dense, as MOSES@{size}"], LEAST_OVER_DENSE
        ),
        f"IntDiv1, distance from dense@{size}": at_most(
            abs(ours - found["IntDiv1: dense, as MOSES"]), LARGEST_DIFFERENCE
        ),
        f"IntDiv1, distance from RDKit@{size}": at_most(
            abs(ours - found["IntDiv1: RDKit bulk"]), LARGEST_DIFFERENCE
        ),
        f"Circles that are not LeaderPicker's@{size}": at_most(
            _num_different(found["Circles: ours"], found["Circles: LeaderPicker"]), 0
        ),
        f"Circles that are not the loop's@{size}": at_most(
            _num_different(found["Circles: ours"], found["Circles: loop over bulk"]), 0
        ),
        f"chunked Circles that are not the program's@{size}": at_most(
            _num_different(
                found["chunked Circles: ours"], found["chunked Circles: loop over bulk"]
            ),
            0,
        ),
    }


def compare_many(report: Report, timer: PairedTimer, packed_NW: Tensor) -> None:
    """Time the sides that scale to a large set, and measure the memory of a separate process."""
    size = len(packed_NW)
    ours = Side("IntDiv1: ours", lambda: internal_diversity(packed_NW))
    report.add(timer.compare("IntDiv1", size, [ours]))
    vectors = bit_vectors(packed_NW)
    circles = [
        Side("Circles: ours", lambda: leader(packed_NW, THRESHOLD)),
        Side("Circles: LeaderPicker", lambda: picked_leaders(vectors)),
    ]
    report.add(timer.compare("Circles", size, circles))
    different = _num_different(leader(packed_NW, THRESHOLD), picked_leaders(vectors))
    peak = peak_resident_bytes(packed_NW.cpu().numpy())
    report.checks |= {
        f"Circles that are not LeaderPicker's@{size}": at_most(different, 0),
        f"resident bytes of a process that computes both@{size}": at_most(peak, MOST_BYTES_AT_100K),
    }


def peak_resident_bytes(words_NW: np.ndarray) -> int:
    """Measure the peak memory of a new process that computes IntDiv1 and Circles."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_computing_both, (words_NW, torch.get_num_threads()))


def _computing_both(words_NW: np.ndarray, num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    packed_NW = torch.from_numpy(words_NW)
    internal_diversity(packed_NW)
    leader(packed_NW, THRESHOLD)
    return most_resident_bytes()


def _num_different(ours: list[int], theirs: list[int]) -> int:
    """Count the positions at which two sequences differ."""
    differing = sum(a != b for a, b in zip(ours, theirs, strict=False))
    return differing + abs(len(ours) - len(theirs))


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How fast are internal diversity and #Circles?")
    parser.add_argument("--num-molecules", type=int, default=10_000)
    parser.add_argument("--num-many", type=int, default=100_000, help="not with --quick")
    parser.add_argument("--molecules", type=Path, help="a file with a column `smiles`")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    report = Report("molecule_metrics", describe_device(device), more={"values": {}})
    report.more["molecules"] = options.molecules.name if options.molecules else "embedded"
    packed_NW = morgan_fingerprints(molecules(options.num_molecules, options.molecules))[1].to(
        device
    )
    with PairedTimer(device, *((1, 3, 5.0) if options.quick else (5, 15, 60.0))) as timer:
        compare(report, timer, packed_NW)
    if not options.quick:
        many_NW = morgan_fingerprints(molecules(options.num_many, options.molecules))[1].to(device)
        with PairedTimer(device, 1, 3, 30.0) as timer:
            compare_many(report, timer, many_NW)
    console = wide_console()
    report.print(console)
    console.print(
        ", ".join(f"{name}: {value:.6g}" for name, value in report.more["values"].items())
    )
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
