"""Malformed rows and files of every format, read by the datamodules as a run reads them.

    python -m campaigns.fuzz_records --cases 2000 --seed 7

Each case writes a file with one fault, builds the datamodule on it and takes a batch. A fault that
cannot be read has to be refused in one sentence with the file and, in a row, the line.
"""

import gzip
import json
import os
import random
import signal
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

from triptych.campaigns.book import CLEAN, FAULTY, campaign_parser, chance, chosen, opened
from triptych.campaigns.forked_runs import fork, preload
from triptych.campaigns.record_faults import FORMATS, byte_fault, encode, row_fault, rows_of

LONGEST_LOAD_S = 60
PRELOADED = (
    *("datasets", "rdkit.Chem", "pyarrow.parquet", "triptych.cli"),
    *(
        "triptych.datamodules.remember.text.text_corpus",
        "triptych.datamodules.remember.facts.facts",
    ),
    *("triptych.datamodules.diversify.chat_prompts", "triptych.datamodules.commune.reasoning"),
    *("triptych.datamodules.diversify.supervised_replies",),
    *("triptych.datamodules.diversify.molecules.smiles",),
)


def main(words: list[str] | None = None) -> int:
    """Run the campaign, and return the number of faulty cases."""
    options = campaign_parser("fuzz_records", __doc__.partition("\n")[0], 2000).parse_args(words)
    book = opened(options)
    preload(PRELOADED)
    kinds = chosen(list(FORMATS), options.only)
    for case in range(options.cases):
        random = chance(options.seed, case)
        kind = random.choice(kinds)
        form = random.choice(FORMATS[kind])
        data, fault, must, lined = _damaged(kind, form, random)
        label = f"{case} {form}: {fault}"
        if book.has(label):
            continue
        path = book.folder / f"case.{form}"
        path.write_bytes(data)
        found = _read(book.folder, kind, path, must, lined)
        book.add(kind, label, *found)
        if case % 50 == 49:
            print(f"{case + 1} of {options.cases}", flush=True)
    return book.close()


def _damaged(kind: str, form: str, chance: random.Random) -> tuple[bytes, str, bool | None, bool]:
    """Make a file.

    Returns:
        Its bytes, the name of the fault, whether it has to be refused (None: it is right and must
        not be), and whether the message has to name the line.
    """
    fault: str
    must: bool | None
    style = chance.choice(["row"] * 5 + ["bytes"] * 6 + ["right"])
    rows = rows_of(kind)
    if style == "bytes":
        right = encode(rows, form, kind)
        damaged, fault, must, lined = byte_fault(right, form, kind, chance)
        return damaged, fault, must and not _is_harmless(damaged, right, form), lined
    fault, must = "none", None
    if style == "row":
        fault, must = row_fault(rows, kind, chance, form)
    try:
        data = encode(rows, form, kind)
    except Exception:  # no file of this format can have the fault
        fault, must, data = "none", None, encode(rows_of(kind), form, kind)
    data = gzip.compress(data, mtime=0) if form.endswith(".gz") else data
    return data, fault, must, style == "row"


def _is_harmless(damaged: bytes, right: bytes, form: str) -> bool:
    """Tell whether rows are right all the same: a bit of gzip's head, or a cut between lines."""
    if form.endswith(".gz"):
        try:
            return gzip.decompress(damaged) == right
        except (OSError, EOFError, zlib.error):
            return False
    lines = right.splitlines()
    cut = damaged.splitlines()
    return form == "jsonl" and bool(cut) and cut == lines[: len(cut)]


def _read(out: Path, kind: str, path: Path, must: bool | None, lined: bool) -> tuple[str, str, str]:
    answer = out / "answer.json"
    answer.unlink(missing_ok=True)

    def call() -> None:
        partial = answer.with_suffix(".partial")
        partial.write_text(json.dumps(_outcome(kind, path, must, lined, out / "cache")))
        os.replace(partial, answer)

    child = fork(call, out, "case")
    code = child.wait(LONGEST_LOAD_S)
    if answer.is_file():
        verdict, how, detail = json.loads(answer.read_text())
        return verdict, how, detail
    how = "hang" if code is None or code == -signal.SIGALRM else "crash"
    return FAULTY, how, f"exit {code}: {child.err[-300:]}"


def _outcome(
    kind: str, path: Path, must: bool | None, lined: bool, cache: Path
) -> tuple[str, str, str]:
    from triptych.callbacks.command_line.error_report import USER_ERRORS

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            take_a_batch(kind, path, cache)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:300]}"
            if not isinstance(error, USER_ERRORS):
                return FAULTY, "traceback", text
            if must is None:
                return FAULTY, "a right file refused", text
            # A file with too few rows left is refused as a whole.
            if path.name not in str(error):
                return FAULTY, "refused without the file", text
            has_line = any(word in str(error) for word in (", line ", ", row ", ", item "))
            if lined and must and not has_line:
                return FAULTY, "refused without the line", text
            return CLEAN, "refused", text
    if must:
        said = [str(w.message) for w in caught if path.name in str(w.message)]
        if said:
            return CLEAN, "taken with a warning", said[0][:300]
        return FAULTY, "taken without a word", ""
    return CLEAN, "taken", "" if must is None else "the file can be read as it is"


def take_a_batch(kind: str, path: Path, cache: Path) -> None:
    """Build the datamodule on a file and take a batch of each loader, as a fit does."""
    data = _datamodule(kind, path, cache)
    data.prepare_data()
    data.setup("fit")
    if hasattr(data, "fingerprint"):
        data.fingerprint()
    for loaders in (data.train_dataloader(), data.val_dataloader()):
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            next(iter(loader), None)


def _datamodule(kind: str, path: Path, cache: Path) -> Any:
    from triptych.datamodules.batches.tokenizer import TokenizerConfig
    from triptych.datamodules.sources.records import RecordSource

    source = RecordSource(str(path))
    common: dict[str, Any] = {"cache_dir": str(cache), "batch_size": 2}
    tokenizer: dict[str, Any] = {"tokenizer": TokenizerConfig(vocab_size=300)}
    if kind == "text":
        from triptych.datamodules.remember.text.text_corpus import TextConfig, TextCorpus

        other = path.parent / "held_out.txt"
        other.write_text("A held-out text. " * 20)
        config = TextConfig([source], {"text": RecordSource(str(other))})
        return TextCorpus(config, context_length=32, **tokenizer, **common)
    if kind == "facts":
        from triptych.datamodules.remember.facts.facts import Facts, FactsConfig

        facts = FactsConfig(source, validation_questions="own_question")
        return Facts(facts, context_length=96, **tokenizer, **common)
    if kind == "prompts":
        from triptych.datamodules.diversify.chat_prompts import ChatPrompts, PromptsConfig

        return ChatPrompts(PromptsConfig(source, held_out_share=0.3), **tokenizer, **common)
    if kind == "replies":
        from triptych.datamodules.diversify.supervised_replies import (
            RepliesConfig,
            SupervisedReplies,
        )

        return SupervisedReplies(RepliesConfig(source), context_length=128, **tokenizer, **common)
    if kind == "smiles":
        from triptych.datamodules.diversify.molecules.smiles import Smiles, SmilesConfig
        from triptych.datamodules.diversify.molecules.smiles_splits import SmilesSplit

        split = SmilesSplit(by="random", validation_share=0.3)
        return Smiles(SmilesConfig(source, split=split, preparing_processes=1), **common)
    if kind == "documents":
        from triptych.datamodules.remember.text.document_stream import DocumentStream
        from triptych.datamodules.remember.text.documents import DocumentsConfig

        documents = DocumentsConfig(source)
        return DocumentStream(
            documents, cache_dir=str(cache), context_length=96, eval_batch_size=2, **tokenizer
        )
    from triptych.datamodules.commune.debate_questions import DebateQuestions
    from triptych.datamodules.commune.reasoning import Reasoning

    task = Reasoning(source, num_train=4, num_val=2, answer_kind="number")
    return DebateQuestions(task, batch_size=2)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
