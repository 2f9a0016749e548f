"""How many oracle calls per second does a program make, against a Python function?

`python -m benchmarks.external_oracle [--quick] [--out FILE]`

Both sides are an `OracleReward` with a ledger on disk that scores the same molecules in steps of
64. One asks `PythonComponent`, in this process. The other asks `ExternalProcess`: a shell script
that is started for each batch. Both do the same work: they wait as long for each molecule, as a
docking program or a network would take, and return the share of oxygen. The sides run in turn.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from triptych.benchmarks.paired import Timing, time_ratio
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
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.external_process import ExternalProcess
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward
from triptych.objectives.rewards.molecules.python_component import PythonComponent

BATCH, WAIT_S, LEAST = 64, 0.005, 0.8
PROGRAM, FUNCTION = "a program", "a Python function"
SCRIPT = """awk -v wait="$1" '
    { text = $0; print gsub("O", "", text) / length($0) }
    END { fflush(); system("sleep " NR * wait) }'
"""


def share_of_oxygen(molecule: Any) -> float:
    """Return the share of oxygen in a chain without rings, after a wait."""
    time.sleep(WAIT_S)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    return symbols.count("O") / len(symbols)


def chains(count: int) -> list[str]:
    """Return different chains of carbon and oxygen: the binary digits of numbers."""
    digits = (f"{number:016b}" for number in range(2 * count))
    texts = ("C" + word.replace("0", "C").replace("1", "O") + "C" for word in digits)
    # A chain that reads the same backwards as another one is the same molecule.
    return list(dict.fromkeys(min(text, text[::-1]) for text in texts))[:count]


def timed(component: MoleculeComponent, smiles: Sequence[str], path: Path) -> tuple[float, Any]:
    """Score molecules in steps; return the seconds and the ledger's calls."""
    objective = MoleculeObjective([component], mean="arithmetic")
    reward = OracleReward(objective, len(smiles), str(path))
    reward.prepare(torch.device("cpu"))
    objective.prepare()
    began = time.perf_counter()
    for first in range(0, len(smiles), BATCH):
        reward(only_texts(list(smiles[first : first + BATCH])))
    seconds = time.perf_counter() - began
    calls = reward.ledger.calls()
    reward.close()
    return seconds, calls


def only_texts(texts: list[str]) -> Rollout:
    """Make a rollout for a reward that reads texts only."""
    column = torch.zeros(len(texts), 1, dtype=torch.int64)
    return Rollout(
        prompts=[""] * len(texts),
        texts=texts,
        group_B=column[:, 0],
        prompt_ids_BP=column,
        prompt_mask_BP=column.bool(),
        token_ids_BT=column,
        token_mask_BT=column.bool(),
        finished_B=column[:, 0].bool(),
        log_prob_B=column[:, 0].float(),
    )


def compare(report: Report, num_calls: int, num_rounds: int) -> None:
    """Run both sides in turn, and compare calls per second and scores."""
    smiles = chains(num_calls)
    seconds: dict[str, list[float]] = {PROGRAM: [], FUNCTION: []}
    differing = 0
    with tempfile.TemporaryDirectory(prefix="external_oracle_") as folder:
        script = Path(folder) / "oracle.sh"
        script.write_text(SCRIPT)
        sides: dict[str, Callable[[], MoleculeComponent]] = {
            PROGRAM: lambda: ExternalProcess(f"sh {script} {WAIT_S}", batch_size=BATCH),
            FUNCTION: lambda: PythonComponent(
                "triptych.benchmarks.external_oracle:share_of_oxygen"
            ),
        }
        for number in range(num_rounds):
            scores = {}
            for name, make in sides.items():
                path = Path(folder) / f"{number}_{len(seconds[name])}_{name}.sqlite"
                elapsed, calls = timed(make(), smiles, path)
                seconds[name].append(elapsed)
                scores[name] = {call.smiles: call.score for call in calls}
            own, other = scores[PROGRAM], scores[FUNCTION]
            differing += sum(abs(own[text] - other[text]) > 1e-5 for text in other)
            differing += len(other) - len(own)
    timings = {name: Timing(name, num_calls, found, 0) for name, found in seconds.items()}
    report.rows += [
        timing.row() | {"calls_per_s": num_calls / timing.median_s} for timing in timings.values()
    ]
    key = f"{FUNCTION} / {PROGRAM}@{num_calls}"
    report.ratios[key] = time_ratio(timings[FUNCTION], timings[PROGRAM])
    report.checks |= {
        "calls a second of a program, of those of a function": at_least(report.ratios[key], LEAST),
        "scores that differ": at_most(differing, 0),
    }


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How many calls a second does a program make, against a function?")
    parser.add_argument("--num-calls", type=int, help="of a side; default 2,560, quick: 640")
    options = parser.parse_args(arguments)
    if options.device not in (None, "cpu"):
        raise ValueError(f"--device {options.device}: only the CPU is measured; leave it out")
    device = prepare_device("cpu", options.threads)
    num_calls = (640 if options.quick else 2560) if options.num_calls is None else options.num_calls
    if num_calls < 1:
        raise ValueError(f"--num-calls is {num_calls}: set it to at least 1")
    report = Report("external_oracle", describe_device(device))
    compare(report, num_calls, 3 if options.quick else 5)
    console = wide_console()
    for row in report.rows:
        console.print(f"{row['name']}: {row['calls_per_s']:.0f} calls/s")
    report.print_checks(console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
