"""Which of the project's data files may train: no evaluation set may, and no text twice."""

from collections.abc import Iterable
from pathlib import Path

from triptych.datamodules.sources.record_files import file_format
from triptych.datamodules.sources.records import RecordSource

# By file name without its format: these only ever evaluate.
EVALUATION_ONLY = frozenset(
    {
        "books_valid",
        "wikitext2_valid",
        "nq_open_dev_a",
        "gsm8k_test",
        "gsm8k_train_2k",
        "hellaswag_val_2k",
    }
)
# A small stand-in for the files it was cut from.
STAND_IN = "small_slice"
STOOD_IN_FOR = frozenset({"books_train", "reference_train", "stories_train"})


def check_roles(train: Iterable[RecordSource], validation: Iterable[RecordSource] = ()) -> None:
    """Refuse combinations of sources that would train on what evaluates, or twice on one text.

    Args:
        train: Sources that train, paths located.
        validation: Sources that evaluate, paths located. Leave out those that are meant to recall
            what was trained on.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: naming the file and what to do instead.
    """
    train_files = [file for source in train for file in _local_files(source)]
    validation_files = [file for source in validation for file in _local_files(source)]
    for file in train_files:
        if _stem(file) in EVALUATION_ONLY:
            raise ValueError(
                f"{file} only ever evaluates: take it out of the training sources (it may stand "
                "among the validation sources)"
            )
        if train_files.count(file) > 1:
            raise ValueError(f"{file} is given twice for training: name it once")
        if file in validation_files:
            raise ValueError(
                f"{file} is given for both training and validation, which would validate on text "
                "seen in training: give another file for one of them"
            )
    train_names = {_stem(file) for file in train_files}
    beside = sorted(train_names & STOOD_IN_FOR)
    if STAND_IN in train_names and beside:
        raise ValueError(
            f"{STAND_IN} is cut from {', '.join(sorted(STOOD_IN_FOR))} and stands in for them: "
            f"train on it or on {', '.join(beside)}, not on both"
        )
    names = train_names | {_stem(file) for file in validation_files}
    if validation_files and STAND_IN in names and names & STOOD_IN_FOR:
        raise ValueError(
            f"{STAND_IN} is cut from {', '.join(sorted(STOOD_IN_FOR))}, so one cannot train while "
            "the other validates: give other text for validation"
        )


def _local_files(source: RecordSource) -> list[Path]:
    if source.is_embedded or source.hub_name:
        return []
    return [file.resolve() for file in source.files()]


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(file_format(file) or "")
