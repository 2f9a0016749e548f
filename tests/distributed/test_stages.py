"""Of two processes the first runs the experiment that both start from, and the second waits."""

import json
import socket

import pytest

from tests.train_process import start_train
from triptych import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def started_both(workdir, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        start_train(workdir, *words, NODE_RANK="0", LOCAL_RANK=str(rank), **address)
        for rank in range(2)
    ]


def test_the_first_of_two_processes_runs_the_stage(tiny, workdir):
    stage = tiny(name="base_model")[2]
    words = tiny("--config", ROOT / "configs" / "hardware" / "ddp2_cpu.yaml")
    words += ["--model.init_args.init_from", stage, "--run_dir", "two"]
    both = started_both(workdir, words)
    codes = [running.wait() for running in both]
    assert codes == [0, 0], "\n".join(running.stderr() for running in both)
    assert "process 1 waits for process 0, which runs" in both[1].stderr()
    assert "waits" not in both[0].stderr()
    (summary,) = (workdir / "runs" / "stages").glob("base_model-*/summary.json")
    assert json.loads(summary.read_text())["processes"] == 1
    assert json.loads((workdir / "two" / "summary.json").read_text())["processes"] == 2


def test_both_end_if_the_stage_fails(tiny, workdir):
    stage = tiny(name="broken", model={"init_args": {"nan_at_step": 1}})[2]
    words = tiny("--config", ROOT / "configs" / "hardware" / "ddp2_cpu.yaml")
    both = started_both(workdir, [*words, "--model.init_args.init_from", stage])
    assert [running.wait() for running in both] == [1, 1]
    assert "failed with exit code 1" in both[0].stderr()
    assert "failed in process 0" in both[1].stderr()
