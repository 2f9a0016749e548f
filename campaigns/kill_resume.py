"""`kill -9` of every shipped run at random places; resumed, it has to end as if left alone.

    python -m campaigns.kill_resume --cases 60 --seed 7

Each case takes one configuration at a few steps, kills it once or twice, resumes it in place from
``checkpoints/last.ckpt`` (or starts it anew where there is none yet), and compares weights, every
metric, summary, tables and ledgers with a run that was left alone.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from triptych.campaigns.book import CLEAN, FAULTY, Book, campaign_parser, chance, chosen, opened
from triptych.campaigns.forked_runs import message_of, preload, start_run
from triptych.campaigns.kill_plans import KINDS, random_plan
from triptych.campaigns.run_comparison import differences
from triptych.campaigns.shipped_runs import RUNS, STAGES, ShippedRun

LONGEST_RUN_S = 1200.0


def main(words: list[str] | None = None) -> int:
    """Run the campaign, and return the number of faulty cases."""
    options = campaign_parser("kill_resume", __doc__.partition("\n")[0], 60).parse_args(words)
    book = opened(options)
    names = chosen(list(RUNS), options.only)
    preload()
    for case in range(options.cases):
        name = names[case % len(names)]
        random = chance(options.seed, name, case)
        # Each kind comes as often as any other, also in few cases.
        kind = KINDS[(case + options.seed) % len(KINDS)] if case >= len(names) else None
        kind = kind or random.choice(KINDS)
        label = f"{case} {name}: {kind}"
        if book.has(label):
            continue
        whole = _left_alone(book.folder, name, book)
        if whole is None:
            book.add(name, label, FAULTY, "does not run", "see its first case")
            continue
        seconds = json.loads((whole / "summary.json").read_text())["wall_seconds"]
        steps = json.loads((whole / "summary.json").read_text())["steps"]
        run = book.folder / "killed" / f"{case}-{name}"
        shutil.rmtree(run, ignore_errors=True)
        twice = random.random() < 0.25
        plans = [random_plan(kind, random, seconds, steps)]
        plans += [random_plan(random.choice(KINDS), random, seconds, steps)] if twice else []
        traces = []
        for number, plan in enumerate(plans):
            code = _run(book.folder, RUNS[name], run, f"{case}-{number}", plan.install)[0]
            traces.append(f"{plan.kind} {plan.number}{' after' if plan.after else ''}: {code}")
            if code == 0:  # it ended before its kill
                break
        code, message = 0, ""
        if not _is_finished(run):
            code, message = _run(book.folder, RUNS[name], run, f"{case}-resumed")
        found = [f"exit {code}: {message}"] if code != 0 else differences(whole, run)
        ended = "bit-exact" if not found else "resume failed" if code != 0 else "differs"
        detail = "; ".join([*traces, *found])
        book.add(name, label, FAULTY if found else CLEAN, ended, detail)
        print(f"{label}: {ended} {'; '.join(found)[:300]}", flush=True)
        if not found:
            shutil.rmtree(run, ignore_errors=True)
    return book.close()


def _left_alone(folder: Path, name: str, book: Book) -> Path | None:
    """Return the run that was left alone; it runs once. None if it fails."""
    run = folder / "whole" / name
    if _is_finished(run):
        return run
    shutil.rmtree(run, ignore_errors=True)
    start = RUNS[name].start
    if start is not None and not _stage(folder, start, book):
        return None
    code, message = _run(folder, RUNS[name], run, f"whole-{name}")
    if code != 0:
        book.add(name, f"whole {name}", FAULTY, "does not run", message)
        return None
    return run


def _stage(folder: Path, name: str, book: Book) -> bool:
    """Train a run that others start from, once."""
    run = folder / "stages" / name
    if _is_finished(run):
        return True
    start = STAGES[name].start
    if start is not None and not _stage(folder, start, book):
        return False
    shutil.rmtree(run, ignore_errors=True)
    code, message = _run(folder, STAGES[name], run, f"stage-{name}")
    if code != 0:
        book.add(name, f"stage {name}", FAULTY, "does not run", message)
    return code == 0


def _run(
    folder: Path,
    shipped: ShippedRun,
    run: Path,
    name: str,
    before: Callable[[], None] | None = None,
) -> tuple[int | None, str]:
    """Start a run, or go on with it, and return its exit code and message."""
    last = run / "checkpoints" / "last.ckpt"
    words = shipped.command(run, folder / "stages")
    words += ["--ckpt_path", last] if last.is_file() else []
    began = time.monotonic()
    running = start_run(words, folder, name, before)
    code = running.wait(LONGEST_RUN_S)
    print(f"  {name}: exit {code} in {time.monotonic() - began:.0f} s", flush=True)
    return code, "it hangs" if code is None else message_of(running.err)


def _is_finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "finished"


if __name__ == "__main__":
    sys.exit(min(main(), 1))
