"""Experiments take two steps in every precision, and molecules end in bf16-mixed as in float32."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.cli import main

TIMES = ("samples_per_second", "tokens_per_second", "_seconds")


def two_steps(name: str, precision: str, *words: object) -> dict[str, float]:
    before = torch.get_default_dtype()
    run = main(
        [
            *("fit", "--config", str(ROOT / "configs" / name)),
            *("--config", str(ROOT / "configs" / "hardware" / "cpu.yaml")),
            *("--trainer.precision", precision, "--trainer.fast_dev_run", "2"),
            *map(str, words),
        ]
    )
    assert torch.get_default_dtype() == before
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    return {k: v for k, v in summary["metrics"].items() if not k.endswith(TIMES)}


@pytest.mark.parametrize(
    "precision",
    ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("32-true", "bf16-true"))],
)
def test_a_search_and_its_prior(workdir, stages_in_this_process, precision):
    two_steps("diversify/molecules.yaml", precision)
    assert len(list(Path("runs/stages").glob("molecules_prior-*/export"))) == 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bf16_mixed_changes_no_number_of_a_search(workdir, cell):
    tiny_rnn(cell).save_pretrained("prior")
    tiny_tokenizer().save_pretrained("prior")
    words = ["--model.init_args.init_from", "prior", "--model.init_args.max_new_tokens", "8"]
    found = [
        two_steps("diversify/molecules.yaml", precision, *words)
        for precision in ("32-true", "bf16-mixed")
    ]
    assert "train/kl_nats" in found[0]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart.yaml", "diversify/one_or_two.yaml"])
def test_bf16_true(workdir, stages_in_this_process, name):
    two_steps(name, "bf16-true")
