"""Does jobs on the pretended GPU, one after the other, in a process that imported everything once.

``python -m tests.pretended_gpu.server LIBRARY`` reads a job from each line of its input and writes
a line with the outcome, both JSON. A job either runs the command line, ``{"words": [...],
"folder": ..., "counted_step": 1}``, or calls a function, ``{"call": "module:function"}``, with the
folder if there is one.
"""

import importlib
import json
import os
import sys
import traceback
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.pretended_gpu import guard


def serve(library: Path) -> None:
    """Answer jobs until the input ends."""
    guard.load(library)
    # torch is imported from here on.
    from tests.conftest import without_learning_curves
    from tests.pretended_gpu.cuda import pretended_cuda
    from tests.pretended_gpu.stand_ins import stand_ins_used

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer
    with ExitStack() as stack:
        stack.enter_context(pretended_cuda())
        stack.enter_context(without_learning_curves())
        stack.enter_context(stand_ins_used())
        for line in sys.stdin:
            print(json.dumps(_do(json.loads(line))), file=answers, flush=True)


def _do(job: dict[str, Any]) -> dict[str, Any]:
    try:
        if "call" in job:
            module, _, name = job["call"].partition(":")
            arguments = [Path(job["folder"])] if "folder" in job else []
            return {"value": getattr(importlib.import_module(module), name)(*arguments)}
        return _run(job)
    except BaseException as error:  # the answer is the only way to tell
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from tests.pretended_gpu.counted_steps import counted_step
    from triptych.cli import main

    folder = Path(job["folder"])
    with (
        chdir(folder),
        Path(job["log"]).open("a") as output,
        redirect_stdout(output),
        redirect_stderr(output),
        counted_step(job.get("counted_step")) as waits,
    ):
        run = main(job["words"])
        summary = json.loads((run / "summary.json").read_text())
    counted = [[one.place, one.kind, one.is_ours, number] for one, number in waits.items()]
    return {"run": str((folder / run).absolute()), "summary": summary, "waits": counted}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
