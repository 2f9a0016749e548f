"""What do leakage probes see at a number of messages and a width?

    python -m studies.commune.probe_power --messages 2048 --numbers 32 --classes 5

Leaks of known size are planted into Gaussian messages, and every family of probes reads them back
on held-out messages (`metrics.commune.probe_power`). Says in advance whether a run's
`probe_samples` suffice; the report of a run says it of the run's own messages.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from triptych.metrics.commune.leakage_probe import FAMILIES
from triptych.metrics.commune.probe_power import LEAKS, ProbePower, mean_accuracies, probe_power


def main(args: Sequence[str] | None = None) -> list[ProbePower]:
    """Print a table; return the power of each repetition."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=2048, help="messages to fit on")
    parser.add_argument("--held_out", type=int, default=2000, help="messages to score on")
    parser.add_argument("--numbers", type=int, default=32, help="width of a message")
    parser.add_argument("--classes", type=int, default=5, help="classes of what is private")
    parser.add_argument("--seeds", type=int, default=2, help="repetitions")
    options = parser.parse_args(args)
    powers = []
    for seed in range(options.seeds):
        generator = torch.Generator().manual_seed(seed)
        message_NR = torch.randn(options.messages, options.numbers, generator=generator)
        held_out_BR = torch.randn(options.held_out, options.numbers, generator=generator)
        powers.append(probe_power(message_NR, held_out_BR, options.classes, seed))
    size = f"{options.messages} messages of {options.numbers} numbers"
    table = Table(title=f"{size}, chance {powers[0].chance:.3f}")
    for column in ("planted leak", "oracle", *FAMILIES, "seen by"):
        table.add_column(column)
    for leak in LEAKS:
        found = mean_accuracies([power.found[leak] for power in powers])
        seen = [name for name in FAMILIES if all(power.sees(leak, name) for power in powers)]
        oracle = sum(power.oracle[leak] for power in powers) / len(powers)
        cells = [f"{value:.3f}" for value in (oracle, *found.values())]
        table.add_row(leak, *cells, ", ".join(seen) or "blind here")
    Console().print(table)
    return powers


if __name__ == "__main__":
    main()
