"""The fenced blocks of README and docs, and what a reader does with each.

``python -m tests.documentation.printed_blocks`` prints how many of them are run, page by page.

A fence names its language: `bash` (commands, one a line), `python`, `yaml`, or `text` for output. A
first line such as `# mine.yaml` names the file that a reader saves the block as. A comment above a
block says what else to do with it:

    <!-- not run: needs a GPU -->              left out, with the reason
    <!-- run by: tests/test_x.py -->           another test runs it
    <!-- merged with: configs/x.yaml -->       a part of a configuration, run with this one

``<!-- all blocks run by: tests/test_x.py -->`` in the first line stands above every block.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from triptych import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
LANGUAGES = ("bash", "python", "yaml", "text", "{toctree}", "{include}")
RUN_LANGUAGES = ("bash", "python", "yaml")
NOTES = ("not run", "run by", "merged with")
FENCE = re.compile(
    r"(?:^ *<!-- (?P<key>[a-z ]+): (?P<note>[^>]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Its line on the page.
        language: `bash`, `python`, `yaml` or `text`.
        text: What stands in it.
        file: Name of the file that a reader saves it as.
        note: Key and text of the comment above it.
    """

    line: int
    language: str
    text: str
    file: str | None
    note: tuple[str, str] | None

    @property
    def is_run(self) -> bool:
        """Whether the page's test runs it."""
        left_out = self.note is not None and self.note[0] != "merged with"
        return self.language in RUN_LANGUAGES and not left_out

    def commands(self) -> list[list[str]]:
        """Return the words of each command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page.

    Raises:
        ValueError: for a fence without a known language, and a comment of an unknown kind.
    """
    text = page.read_text()
    all_run = re.match(r"<!-- all blocks run by: (\S+) -->\n", text)
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        place = f"{page.name}, line {line}"
        if match["language"] not in LANGUAGES:
            raise ValueError(f"{place}: name one of {LANGUAGES} as the language of the block")
        if match["key"] and match["key"] not in NOTES:
            raise ValueError(f"{place}: there is no comment {match['key']}; there is {NOTES}")
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
        file = re.match(r"# ([\w/-]+\.(?:py|yaml))\b", body)
        note = (match["key"], match["note"]) if match["key"] else None
        if all_run and match["language"] in RUN_LANGUAGES:
            note = ("run by", all_run[1])
        found.append(Block(line, match["language"], body, file and file[1], note))
    return found


def main() -> None:
    """Print how many blocks and commands of each page are run, and why others are not."""
    kinds = ("commands", "studies", "python", "yaml", "run by another test", "not run")
    total = dict.fromkeys(kinds, 0)
    for page in PAGES:
        counts, reasons = dict.fromkeys(total, 0), []
        for block in blocks(page):
            if block.is_run and block.language == "bash":
                words = [" ".join(command) for command in block.commands()]
                studies = [w for w in words if re.match(r"python -m (studies|benchmarks)", w)]
                counts["studies"] += len(studies)
                counts["commands"] += len(words) - len(studies)
            elif block.is_run:
                counts[block.language] += 1
            elif block.note:
                kind = "not run" if block.note[0] == "not run" else "run by another test"
                counts[kind] += 1
                reasons.append(f"    line {block.line}, {block.note[0]}: {block.note[1]}")
        if any(counts.values()):
            shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            print("\n".join([f"{page.relative_to(ROOT)}: {shown}", *dict.fromkeys(reasons)]))
        total = {name: total[name] + counts[name] for name in total}
    print("all: " + ", ".join(f"{count} {name}" for name, count in total.items()))


if __name__ == "__main__":
    main()
