"""Damaged models, ledgers, checkpoints and records, read as the product reads them.

    python -m campaigns.fuzz_artifacts --cases 1000 --seed 7

A damaged file has to be refused in one sentence that names it, or be read with the same content as
before. Anything else is a fault: another content that is taken, another kind of error, a message
without the file, a crash, or a hang.
"""

import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

from triptych.campaigns.book import CLEAN, FAULTY, campaign_parser, chance, chosen, opened
from triptych.campaigns.forked_runs import fork, preload

LONGEST_LOAD_S = 60


def main(words: list[str] | None = None) -> int:
    """Run the campaign, and return the number of faulty cases."""
    options = campaign_parser("fuzz_artifacts", __doc__.partition("\n")[0], 1000).parse_args(words)
    book = opened(options)
    preload()
    from triptych.campaigns.artifacts import ARTIFACTS, write_artifacts

    names = chosen(list(ARTIFACTS), options.only)
    whole = book.folder / "whole"
    if not (whole / "done").is_file():
        maker = fork(lambda: write_artifacts(whole), book.folder, "whole")
        if maker.wait(300) != 0:
            raise RuntimeError(f"the artefacts could not be written: {maker.err[-2000:]}")
        (whole / "done").touch()
    contents = {}
    for name in names:
        verdict, kind, content = _read(book.folder, name, whole / name, None)
        contents[name] = content
        if not book.has(f"- {name}"):
            book.add(name, f"- {name}", verdict, "undamaged, read" if content else kind, content)
    for case in range(options.cases):
        random = chance(options.seed, case)
        name = names[case % len(names)]
        artifact = ARTIFACTS[name]
        fault = random.choice(sorted(artifact.faults))
        label = f"{case} {artifact.file}: {fault}"
        if book.has(label):
            continue
        folder = book.folder / "damaged" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / name, folder)
        path = folder / artifact.file
        path.write_bytes(artifact.faults[fault](path.read_bytes(), random))
        verdict, kind, detail = _read(book.folder, name, folder, contents[name])
        book.add(name, label, verdict, kind, detail)
    shutil.rmtree(book.folder / "damaged", ignore_errors=True)
    return book.close()


def _read(out: Path, name: str, folder: Path, content: str | None) -> tuple[str, str, str]:
    """Read an artefact in a process of its own.

    Args:
        out: Folder of the campaign.
        name: Kind of the artefact.
        folder: Its folder.
        content: Digest of what the undamaged one reads; None to return it.

    Returns:
        Verdict, kind, and a message (or the digest).
    """
    answer = out / "answer.json"
    answer.unlink(missing_ok=True)
    child = fork(lambda: _answer(name, folder, content, answer), out, "case")
    code = child.wait(LONGEST_LOAD_S)
    if answer.is_file():
        verdict, kind, detail = json.loads(answer.read_text())
        return verdict, kind, detail
    kind = "hang" if code is None or code == -signal.SIGALRM else "crash"
    return FAULTY, kind, f"exit {code}: {child.err[-300:]}"


def _answer(name: str, folder: Path, content: str | None, answer: Path) -> None:
    """Read an artefact in this process, and write down how it ended."""
    from triptych.callbacks.command_line.error_report import USER_ERRORS
    from triptych.campaigns.artifacts import ARTIFACTS

    artifact = ARTIFACTS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = artifact.load(folder)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        is_named = str(folder) in str(error)
        if not isinstance(error, USER_ERRORS):
            result = (FAULTY, "traceback", text)
        elif not is_named:
            result = (FAULTY, "refused without the file", text)
        else:
            result = (CLEAN, "refused", text)
    else:
        if content is None:
            result = (CLEAN, "read", found)
        elif found == content:
            result = (CLEAN, "taken", "the content is the same")
        elif artifact.may_change is not None:
            result = (CLEAN, "taken", artifact.may_change)
        else:
            result = (FAULTY, "damage taken", "another content was read without a word")
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, answer)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
