"""A function on two gloo processes, without a trainer."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.train_process import CONTEXT, start_server


def on_two_processes(folder: Path, function: Callable[..., Any], *inputs: Any) -> list[Any]:
    """Call a function of a module on two processes that have found each other.

    Args:
        folder: Where results and errors are passed on.
        function: Called with the inputs; what it returns must be fit for `torch.save`.
        inputs: Picklable.

    Returns:
        What each process returned.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_server()
    both = [
        CONTEXT.Process(target=_run, args=(folder, rank, port, function, inputs))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    failed = [process for process in both if process.exitcode != 0]
    for process in failed:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error_*"))]
    assert not failed, "\n".join(errors or ["a process was not done after two minutes"])
    return [torch.load(folder / f"result_{rank}") for rank in range(2)]


def _run(
    folder: Path, rank: int, port: int, function: Callable[..., Any], inputs: tuple[Any, ...]
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        torch.save(function(*inputs), folder / f"result_{rank}")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error_{rank}").write_text(traceback.format_exc())
        os._exit(1)
