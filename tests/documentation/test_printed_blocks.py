"""A reader follows each page from top to bottom, and every command and block works.

Trainings take two steps, with the reader's own files beside them. A shipped experiment without
further options, whose run the page does not use later, is left to `tests/configs`, which takes two
steps with each. Studies and benchmarks have tests that run their smallest preset; here their
options are read.
"""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.configs.test_configs import EXPERIMENTS
from tests.documentation.printed_blocks import PAGES, Block, blocks
from tests.documentation.readers_files import write_readers_files
from tests.train_process import start_train
from triptych import ROOT
from triptych.callbacks.command_line import init_from
from triptych.cli import main

STEPS = ["--trainer.max_steps", "2"]
FEW = ["--trainer.limit_val_batches", "1", "--tracking.uri", "null"]
MAKEFILE = (ROOT / "Makefile").read_text()


class OptionsReadError(Exception):
    """A command has read its options; what it does with them is left to its own test."""


def run(words: list[str], page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of a page, on small limits.

    Args:
        words: The command.
        page: The text of the page.
        monkeypatch: Of the test.

    Raises:
        ValueError: for a command of a kind that this test does not know.
    """
    words = [path for word in words for path in expanded(word)]
    match words:
        case ["python", "train.py", "fit", "--config", path] if is_run_with_all(path, page):
            pass
        case ["python", "train.py", *rest] | ["triptych", *rest]:
            run_main(rest)
        case ["python", "-m", module, *rest] if module.startswith(("studies.", "benchmarks.")):
            read_options(module, rest, monkeypatch)
        case ["python", "-m", module, *rest]:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", [module, *rest])
                succeeds(lambda: runpy.run_module(module, run_name="__main__"))
        case ["make", target, *_]:
            recipe = re.search(rf"^{target}:.*\n(?:\t(.*))?", MAKEFILE, re.M)
            assert recipe, f"no target {target}"
            if command := re.fullmatch(r"\$\(BIN\)/python train\.py (.*)", recipe[1] or ""):
                run_main(command[1].split())
        case ["source", ".venv/bin/activate"] | ["cd", *_]:
            pass
        case _:
            raise ValueError(f"{shlex.join(words)}: run it here, or say above it why it is not run")


def run_main(words: list[str]) -> None:
    """Run `train.py` with these words; a training takes one step."""
    small: list[str] = []
    if words[0] in ("fit", "validate") and not any("help" in word for word in words):
        small += STEPS if words[0] == "fit" and STEPS[0] not in words else []
        small += FEW
    succeeds(lambda: main([*words, *small]))


def is_run_with_all(path: str, page: str) -> bool:
    """Whether `tests/configs` runs a configuration, and the page does not use what it leaves."""
    shipped = ROOT / path
    return shipped in EXPERIMENTS and f"runs/{shipped.stem}/" not in page


def succeeds(call: Callable[[], object]) -> None:
    """Call a command that may end the process, which must not be with an error."""
    code: object = None
    try:
        call()
    except SystemExit as end:
        code = end.code
    assert not code


def read_options(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a study or a benchmark read its options, and stop there."""
    study = importlib.import_module(f"triptych.{module}")
    read = argparse.ArgumentParser.parse_args

    def read_only(parser: argparse.ArgumentParser, args: list[str] | None = None) -> None:
        read(parser, args)
        raise OptionsReadError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", read_only)
        with pytest.raises(OptionsReadError):
            study.main(words)


def expanded(word: str) -> list[str]:
    """Expand a pattern as a shell does."""
    paths = sorted(str(path) for path in Path().glob(word)) if "*" in word else []
    return paths or [word]


def follow(block: Block, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do with a block what a reader does."""
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    if block.language == "bash":
        for words in block.commands():
            run(words, page.read_text(), monkeypatch)
    elif block.language == "yaml" and block.note:
        Path("part.yaml").write_text(block.text)
        run_main(["fit", "--config", block.note[1], "--config", "part.yaml"])
    elif block.language == "python" and not block.file:
        exec(compile(block.text, f"{page.name}, line {block.line}", "exec"), {"__name__": "page"})


def run_stage(command: list[str]) -> int:
    """Run a stage in a process that need not import everything anew."""
    return start_train(Path.cwd(), *command[3:], *STEPS, *FEW).wait()


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stages that several pages start from, each trained once."""
    return tmp_path_factory.mktemp("stages")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # a model of two steps gives reasons for many
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.is_run for block in blocks(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_page_works_from_top_to_bottom(page, tmp_path, stages, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init_from, "_run_to_its_end", run_stage)
    Path("runs").mkdir()
    Path("runs/stages").symlink_to(stages, target_is_directory=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_readers_files(tmp_path)
    for block in blocks(page):
        if block.is_run:
            try:
                follow(block, page, monkeypatch)
            except (Exception, SystemExit) as error:
                error.add_note(f"{page.relative_to(ROOT)}, line {block.line}")
                raise


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_used(page):
    text = page.read_text()
    for block in blocks(page):
        place = f"line {block.line}"
        if block.is_run and block.language == "yaml":
            assert block.file or block.note, place
        if block.is_run and block.file:  # named by a command, a configuration or the text
            assert text.count(Path(block.file).stem) > 1, place
        if block.note and block.note[0] == "run by":
            assert (ROOT / block.note[1].partition("::")[0]).is_file(), place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_command_stands_outside_of_a_fence(page):
    assert not re.findall(r"^    (?:python|make|pip) .*", page.read_text(), re.M)
