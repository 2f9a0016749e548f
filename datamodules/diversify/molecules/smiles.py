"""Molecules to train a prior on: SMILES strings, filtered, split, and respelled in each epoch.

    rows with `smiles`                       `records`: embedded, files (also .smi and .txt), hub
      -> canonical, filtered, with scaffold  `smiles_filters`: in parallel, cached on disk
      -> training, validation, test          `smiles_splits`
      -> [BOS] atoms and bonds [EOS]         `smiles_tokenizer`
      -> padded batches of similar length    `bucketed_stream`

The embedded default is 4,000 molecules made of the fragments of known drugs.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.bucketed_stream import BucketedStream, PlannedDocument
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.packing import Document, DocumentSource
from triptych.datamodules.batches.resumable_loader import ResumableLoader
from triptych.datamodules.batches.tokenizer import (
    TokenizerConfig,
    build_tokenizer,
    encode_texts,
)
from triptych.datamodules.diversify.molecules.smiles_filters import (
    SmilesFilters,
    count_left_out,
    count_words,
    prepare_all,
)
from triptych.datamodules.diversify.molecules.smiles_splits import SmilesSplit, split_molecules
from triptych.datamodules.diversify.molecules.smiles_tokenizer import atomwise_tokenizer
from triptych.datamodules.diversify.molecules.smiles_tokens import split_smiles, vocabulary_of
from triptych.datamodules.embedded.molecules import embedded_molecules
from triptych.datamodules.sources.records import (
    RecordSource,
    describe,
    iterate_records,
    source_fingerprint,
)
from triptych.models.disk_cache import build_once, default_cache_dir

# Part of the cache key: raise it when the preparation changes.
VERSION = 2


@dataclass(frozen=True)
class SmilesConfig:
    """Choice of the molecules, and their spelling.

    Args:
        source: Rows with `smiles`, in any form that RDKit reads.
        filters: Filter of the molecules.
        split: Division into training, validation and test.
        spelling: "canonical", or "random": from another atom and in another direction in each
            epoch (Arus-Pous et al. 2019). A spelling longer than `context_length` is replaced by
            the canonical one. Validation is always canonical.
        tokenizer: Folder written by `save_pretrained`, such as an exported prior, with the
            vocabulary to use; null: the atoms and bonds that occur.
        unknown_tokens: What to do with molecules that `tokenizer` cannot spell: "refuse" them, or
            "leave_out" and count them, as for a prior that is fine-tuned.
        preparing_processes: Processes that read and filter; null: the number of cores.
    """

    source: RecordSource = field(default_factory=RecordSource)
    filters: SmilesFilters = field(default_factory=SmilesFilters)
    split: SmilesSplit = field(default_factory=SmilesSplit)
    spelling: Literal["canonical", "random"] = "canonical"
    tokenizer: str | None = None
    unknown_tokens: Literal["refuse", "leave_out"] = "refuse"
    preparing_processes: PositiveInt | None = None


@dataclass(frozen=True)
class Molecules:
    """Prepared molecules.

    Args:
        smiles: Canonical strings, without repeats.
        scaffolds: Scaffold of each molecule.
        left_out: Number of molecules that each filter left out, and of repeats.
    """

    smiles: list[str]
    scaffolds: list[str]
    left_out: dict[str, int]


def read_molecules(config: SmilesConfig, cache_dir: Path) -> Molecules:
    """Read, filter and de-duplicate a source; cache the result on disk.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed or its string is no molecule (unless such rows are
            skipped), or no molecule is left.
    """
    import rdkit

    key = [asdict(config.filters), _fingerprint(config.source), rdkit.__version__, VERSION]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = build_once(
        cache_dir / "smiles" / name,
        lambda unfinished: _write(_prepared(config), unfinished),
    )
    rows = [line.split("\t") for line in (folder / "molecules.tsv").read_text().splitlines()]
    left_out = json.loads((folder / "left_out.json").read_text())
    if not rows:
        raise ValueError(
            f"no molecule of {describe(config.source)} passes the filters ({left_out}): loosen "
            "data.smiles.filters"
        )
    return Molecules([row[0] for row in rows], [row[1] for row in rows], left_out)


class SpelledMolecules(DocumentSource):
    """Molecules as token sequences, respelled in each epoch if `spelling` is "random".

    Args:
        smiles: Canonical strings.
        tokenizer: A tokenizer of atoms and bonds.
        context_length: Maximum number of tokens, with BOS and EOS.
        spelling: As in `SmilesConfig`.
        seed: Seed of the spellings.
    """

    name = "smiles"
    splittable = False

    def __init__(
        self,
        smiles: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        context_length: int,
        spelling: Literal["canonical", "random"],
        seed: int,
    ) -> None:
        self._smiles = list(smiles)
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._spelling = spelling
        self._seed = seed
        encoded = encode_texts(tokenizer, self._smiles)
        lengths = np.fromiter((len(ids) for ids in encoded), np.int64) + 2
        if lengths.max(initial=0) > context_length:
            longest = self._smiles[int(lengths.argmax())]
            raise ValueError(
                f"{longest!r} has {lengths.max()} tokens, BOS and EOS included, but context_length "
                f"is {context_length}: raise data.context_length or lower "
                "data.smiles.filters.max_tokens"
            )
        unknown = next((i for i, ids in enumerate(encoded) if tokenizer.unk_token_id in ids), None)
        if unknown is not None:
            raise ValueError(
                f"the tokenizer does not know all tokens of {self._smiles[unknown]!r}: set "
                "data.smiles.unknown_tokens to leave_out, which counts such molecules, or filter "
                "them by data.smiles.filters. A prior of its own (no init_from, and "
                "data.smiles.tokenizer null) learns every token"
            )
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._smiles)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the lengths of the canonical spellings; random ones differ by a few tokens."""
        return self._lengths

    def document(self, index: int, epoch: int) -> Document:
        """Return molecule `index` in its spelling of `epoch`."""
        (ids,) = encode_texts(self._tokenizer, [self.spell(index, epoch)])
        whole = [self._tokenizer.bos_token_id, *ids, self._tokenizer.eos_token_id]
        tokens = np.array(whole, dtype=np.int64)
        return Document(tokens, tokens)

    def spell(self, index: int, epoch: int) -> str:
        """Spell molecule `index`: a pure function of (seed, epoch, index)."""
        canonical = self._smiles[index]
        if self._spelling == "canonical":
            return canonical
        from rdkit import Chem

        molecule = Chem.MolFromSmiles(canonical)
        digest = hashlib.blake2b(f"{self._seed}/{epoch}/{index}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little") % (2**31 - 1) + 1
        (spelled,) = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)
        fits = len(split_smiles(spelled)) + 2 <= self._context_length
        (ids,) = encode_texts(self._tokenizer, [spelled])
        return spelled if fits and self._tokenizer.unk_token_id not in ids else canonical


class SmilesPart(DataPart):
    """The molecules in the datamodule.

    Args:
        config: Choice of the molecules, and their spelling.
        data_dir: Folder of data; see `data_paths`.
        cache_dir: Folder of cached, prepared molecules.
    """

    name = "smiles"

    def __init__(self, config: SmilesConfig, data_dir: str | None, cache_dir: Path) -> None:
        source = replace(locate(config.source, data_dir), txt_lines="smiles")
        self.config = replace(config, source=source)
        self._cache_dir = cache_dir

    @cached_property
    def molecules(self) -> Molecules:
        """The molecules that pass the filters, and that the given tokenizer can spell.

        The terminal says how many were left out, and why.
        """
        made = read_molecules(self.config, self._cache_dir)
        if self.config.unknown_tokens == "leave_out" and self.config.tokenizer is not None:
            made = self._spelled(made, self.config.tokenizer)
        if made.left_out:
            rank_zero_info(
                f"{len(made.smiles):,} molecules of {describe(self.config.source)}; left out: "
                f"{count_words(made.left_out)}"
            )
        return made

    def _spelled(self, molecules: Molecules, source: str) -> Molecules:
        """Leave out molecules with tokens that a tokenizer does not know."""
        tokenizer = build_tokenizer(TokenizerConfig(path=source), list, "", self._cache_dir)
        encoded = encode_texts(tokenizer, molecules.smiles)
        kept = [i for i, ids in enumerate(encoded) if tokenizer.unk_token_id not in ids]
        if not kept:
            raise ValueError(
                f"the tokenizer of {source} spells no molecule of {describe(self.config.source)}: "
                "give molecules like those that it was made for"
            )
        left_out = dict(molecules.left_out)
        if missing := len(encoded) - len(kept):
            left_out["unknown tokens"] = missing
        columns = (molecules.smiles, molecules.scaffolds)
        smiles, scaffolds = ([column[i] for i in kept] for column in columns)
        return Molecules(smiles, scaffolds, left_out)

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """Canonical SMILES by split."""
        try:
            parts = split_molecules(self.molecules.scaffolds, self.config.split)
        except ValueError as error:
            raise ValueError(f"{describe(self.config.source)}: {error}") from error
        names = ("train", "validation", "test")
        return {
            name: [self.molecules.smiles[index] for index in part]
            for name, part in zip(names, parts, strict=True)
        }

    def fingerprint(self) -> str:
        """Hash the source's rows and the settings that determine the training molecules."""
        config = self.config
        settings: list[Any] = [asdict(config.filters), asdict(config.split)]
        settings += [config.spelling, VERSION]
        if config.unknown_tokens == "leave_out" and config.tokenizer is not None:
            settings.append(sorted(self._vocabulary(config.tokenizer)))
        rows = _fingerprint(config.source)
        return hashlib.sha256(json.dumps([settings, rows]).encode()).hexdigest()

    def _vocabulary(self, source: str) -> dict[str, int]:
        tokenizer = build_tokenizer(TokenizerConfig(path=source), list, "", self._cache_dir)
        found: dict[str, int] = tokenizer.get_vocab()
        return found

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield all molecules: a vocabulary of atoms reveals nothing about held-out ones."""
        yield from self.molecules.smiles

    def documents(self, split: str, row_format: RowFormat) -> SpelledMolecules:
        """Return the molecules of a split as documents."""
        return SpelledMolecules(
            self.splits[split],
            row_format.tokenizer,
            row_format.context_length,
            self.config.spelling if split == "train" else "canonical",
            row_format.seed,
        )

    def train_stream(self, row_format: RowFormat) -> BucketedStream:
        """Return the training molecules one by one; batches are cut by `Smiles`."""
        lengths = self.documents("train", row_format).lengths(0)
        return BucketedStream(lengths, 1, row_format.seed)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the validation molecules, the shortest first, to pad little."""
        documents = self.documents("validation", row_format)
        order = np.argsort(documents.lengths(0), kind="stable")

        def collate(indices: Sequence[int]) -> dict[str, Any]:
            return row_format.collate_padded(
                [documents.document(int(order[i]), 0) for i in indices]
            )

        return [Evaluation(self.name, len(documents), collate)]


class Smiles(PackedDataModule):
    """Training and validation of a prior on molecules, one a row, padded and never packed.

    Batches have the keys of `packing.collate_padded`. Training resumes exactly. Several processes
    see the same rows as a single one with the global batch size.

    Args:
        smiles: Choice of the molecules, and their spelling.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        context_length: Maximum number of tokens of a molecule, with BOS and EOS.
        batch_size: Training molecules per process and batch.
        cache_dir: Folder of cached, prepared molecules; null: `TRIPTYCH_CACHE` or
            ~/.cache/triptych.
        **kwargs: Further settings, those of `PackedDataModule`; a row is a molecule.
    """

    def __init__(
        self,
        smiles: SmilesConfig = SmilesConfig(),
        *,
        data_dir: str | None = None,
        context_length: PositiveInt = 128,
        batch_size: PositiveInt = 64,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.part = SmilesPart(
            smiles, data_dir, Path(cache_dir) if cache_dir else default_cache_dir()
        )
        super().__init__(
            [self.part],
            [1.0],
            tokenizer=TokenizerConfig(path=smiles.tokenizer or "train"),
            context_length=context_length,
            batch_size=batch_size,
            cache_dir=cache_dir,
            **kwargs,
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of atoms and bonds: that of the config, or of the molecules' tokens."""
        if self.part.config.tokenizer is not None:
            return super().tokenizer
        return atomwise_tokenizer(vocabulary_of(self.part.tokenizer_texts()))

    @property
    def splits(self) -> dict[str, list[str]]:
        """Canonical SMILES by split: "train", "validation", "test"."""
        return self.part.splits

    @property
    def left_out(self) -> dict[str, int]:
        """Number of molecules that each filter left out, of repeats and of unknown tokens."""
        return self.part.molecules.left_out

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches."""
        (row_format,) = self._row_formats()
        documents = self.part.documents("train", row_format)
        global_batch_size = self.batch_size * self._shard.world_size
        stream = BucketedStream(documents.lengths(0), global_batch_size, self.seed)
        return ResumableLoader(
            stream,
            _Collate(documents, row_format),
            batch_size=self.batch_size,
            rows_per_epoch=self.rows_per_epoch or stream.num_rows(),
            shard=self._shard,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of planned molecules; picklable, for loader workers."""

    documents: SpelledMolecules
    row_format: RowFormat

    def __call__(self, planned: Sequence[PlannedDocument]) -> dict[str, Any]:
        read = [self.documents.document(each.index, each.epoch) for each in planned]
        return self.row_format.collate_padded(read)


def _fingerprint(source: RecordSource) -> str:
    return source_fingerprint(source, embedded_molecules)


def _prepared(config: SmilesConfig) -> Molecules:
    """Read and prepare all rows; a string that is no molecule is a malformed row.

    Rows are read first and prepared in other processes. If one is no molecule, the rows are read
    again with that knowledge, so that the error names its file and line, or the row is skipped and
    counted.
    """
    known: dict[str, Any] = {}

    def fault(row: dict[str, Any]) -> str | None:
        prepared = known.get(row["smiles"])
        if prepared is None or prepared.smiles is not None:
            return None
        text = row["smiles"]
        named = "; a name after a molecule is read in a .smi file" if " " in text.strip() else ""
        return f"field 'smiles' is {text!r}, which RDKit does not read as a molecule{named}"

    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = iterate_records(config.source, {"smiles": str}, {}, embedded_molecules, fault)
            texts = [row["smiles"] for row in rows]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if not new:
            break
        prepared = prepare_all(new, config.filters, config.preparing_processes)
        known |= zip(new, prepared, strict=True)
        if all(each.smiles is not None for each in prepared):
            break
    for warning in caught:
        warnings.warn(str(warning.message), warning.category, stacklevel=2)
    if not texts:
        raise ValueError(
            f"no molecules in {describe(config.source)}: the source is empty, or all of its rows "
            "were skipped; give one with at least one molecule"
        )
    every = [known[text] for text in texts]
    kept = {each.smiles: each.scaffold for each in every if each.left_out is None}
    left_out = count_left_out(every)
    if repeats := len(every) - sum(left_out.values()) - len(kept):
        left_out["repeats"] = repeats
    return Molecules(list(kept), list(kept.values()), left_out)


def _write(molecules: Molecules, folder: Path) -> None:
    rows = zip(molecules.smiles, molecules.scaffolds, strict=True)
    (folder / "molecules.tsv").write_text("".join(f"{s}\t{scaffold}\n" for s, scaffold in rows))
    (folder / "left_out.json").write_text(json.dumps(molecules.left_out))
