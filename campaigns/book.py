"""What a campaign has tried: one line for each case, a table, and the first of each fault."""

import argparse
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = "results.json"
CLEAN, FAULTY = "clean", "faulty"


@dataclass
class Book:
    """The cases of a campaign, kept in a file as they are tried.

    A campaign that is started again with the same folder skips the cases in the book.

    Attributes:
        folder: Where the campaign writes.
        command: How to repeat the campaign, in the results.
        cases: Lines of the book.
    """

    folder: Path
    command: str
    cases: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / "cases.jsonl"
        if self._path.is_file():
            text = self._path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a kill may leave half a line
            self._path.write_text(whole)
            self.cases = [json.loads(line) for line in whole.splitlines()]

    def has(self, case: str) -> bool:
        """Tell whether a case has been tried."""
        return any(known["case"] == case for known in self.cases)

    def add(self, group: str, case: str, verdict: str, kind: str, detail: str = "") -> None:
        """Write a case down.

        Args:
            group: Row of the table.
            case: Name of the case, with all that it takes to repeat it.
            verdict: "clean" or "faulty".
            kind: How it ended, such as "refused", "taken", "traceback" or "hang".
            detail: A message or a difference.
        """
        line = {"group": group, "case": case, "verdict": verdict, "kind": kind, "detail": detail}
        self.cases.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def table(self) -> str:
        """Return a table in Markdown: tried, clean, faulty, and how the cases ended."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for case in self.cases:
            groups[case["group"]].append(case)
        lines = ["| | tried | clean | faulty | how they ended |", "|---|---|---|---|---|"]
        for name, cases in [*sorted(groups.items()), ("**all**", self.cases)]:
            verdicts = Counter(case["verdict"] for case in cases)
            kinds = Counter(case["kind"] for case in cases)
            ended = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            counts = f"{len(cases)} | {verdicts[CLEAN]} | {verdicts[FAULTY]}"
            lines.append(f"| {name} | {counts} | {ended} |")
        return "\n".join(lines)

    def first_faults(self) -> list[dict[str, Any]]:
        """Return the first case of each kind of fault in each group."""
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for case in self.cases:
            if case["verdict"] == FAULTY:
                first.setdefault((case["group"], case["kind"]), case)
        return list(first.values())

    def close(self) -> int:
        """Print the table, write ``results.json``, and return the number of faulty cases."""
        faulty = sum(1 for case in self.cases if case["verdict"] == FAULTY)
        accepted: dict[str, str] = {}
        for case in self.cases:
            if case["kind"] == "taken":
                name = f"{case['group']}: {_without_number(case['case'])}"
                accepted.setdefault(name, case["detail"])
        content = {
            "command": self.command,
            "tried": len(self.cases),
            "faulty": faulty,
            "first_faults": self.first_faults(),
            "rightly_taken": accepted,
        }
        (self.folder / RESULTS).write_text(json.dumps(content, indent=2) + "\n")
        print(self.table())
        for case in self.first_faults():
            print(f"- {case['group']}: {case['case']}: {case['kind']}: {case['detail'][:300]}")
        print(f"\n{self.folder / RESULTS}")
        return faulty


def campaign_parser(name: str, description: str, cases: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all campaigns have.

    Args:
        name: Name of the campaign's module.
        description: What it does.
        cases: Default of ``--cases``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m campaigns.{name}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--cases", type=int, default=cases, help="number of cases")
    parser.add_argument("--only", nargs="*", default=[], help="groups of cases; by default all")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder, by default runs/campaigns/NAME-seedN; a campaign that is in it goes on",
    )
    parser.set_defaults(campaign=name)
    return parser


def opened(options: argparse.Namespace) -> Book:
    """Open the book of a campaign, and keep all that its runs write below its folder."""
    name = options.campaign
    folder = options.out or Path("runs") / "campaigns" / f"{name}-seed{options.seed}"
    folder = folder.resolve()
    command = f"python -m campaigns.{name} --seed {options.seed} --cases {options.cases}"
    os.environ["TRIPTYCH_CACHE"] = str(folder / "cache")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.only:
        command += f" --only {' '.join(options.only)}"
    return Book(folder, command)


def chance(seed: int, *names: object) -> random.Random:
    """Return the random numbers of one case: they do not depend on the cases before it."""
    return random.Random("/".join(map(str, (seed, *names))))


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Return the groups that a campaign takes.

    Raises:
        ValueError: if there is no such group.
    """
    unknown = set(only) - set(names)
    if unknown:
        raise ValueError(f"--only: there is no {', '.join(sorted(unknown))} in {', '.join(names)}")
    return [name for name in names if not only or name in only]


def _without_number(case: str) -> str:
    return case.partition(" ")[2] or case
