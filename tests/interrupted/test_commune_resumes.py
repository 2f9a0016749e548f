"""Runs of agents, codec and adapter that end in mid-epoch go on bit for bit."""

import warnings
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from triptych.cli import main

TASK = "--data.init_args.task.init_args"
BASE = '{"family": "llama", "num_layers": 2, "num_heads": 2, "hidden_size": 16}'
STAGES = ("agents", "masked_autoencoder", "masked_adapter")
OWN = {
    "agents": ("--model.init_args.agents.bases", f"[{BASE}]"),
    "masked_autoencoder": ("--model.init_args.codec.private_per_agent", 4),
    "masked_adapter": (
        *("--model.init_args.adapter.routing.mode", "all", "--model.init_args.probe_samples", 0),
        *("--model.init_args.intervention_samples", 0, "--model.init_args.text_budgets", "[]"),
        # its replies are sampled in every step
        *("--model.init_args.loss.gradient", "straight_through"),
    ),
}


class KilledError(Exception):
    """What ends a run."""


def fit(stage: str, name: str, *options: object) -> Path:
    small = (f"{TASK}.num_train", 64, f"{TASK}.num_val", 8, "--data.init_args.batch_size", 16)
    small += ("--trainer.max_steps", 7, "--trainer.val_check_interval", 7, "--run_dir", name)
    small += ("--checkpoint.every_n_train_steps", 2, "--trainer.num_sanity_val_steps", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # after seven steps nothing is settled
        return main(
            [
                *("fit", "--config", str(ROOT / "configs" / "commune" / f"{stage}.yaml")),
                *("--config", str(ROOT / "configs" / "hardware" / "cpu.yaml")),
                *("--tracking.uri", "null", *map(str, (*small, *OWN[stage], *options))),
            ]
        )


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return {name: value for name, value in state.items() if value.is_floating_point()}


def test_a_killed_run_of_each_stage_goes_on_bit_for_bit(workdir, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(workdir / "cache"))
    start: tuple[object, ...] = ()
    for stage in STAGES:
        whole = fit(stage, f"{stage}-whole", *start)
        module = whole_module(stage)
        step = module.training_step

        def dies(self, batch, batch_idx, step=step):
            if self.global_step == 5:  # in the second epoch of four batches
                raise KilledError
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(module, "training_step", dies)
            with pytest.raises(KilledError):
                fit(stage, f"{stage}-killed", *start)
        checkpoint = f"{stage}-killed/checkpoints/last.ckpt"
        assert torch.load(checkpoint, weights_only=False)["global_step"] == 4
        resumed = fit(stage, f"{stage}-resumed", *start, "--ckpt_path", checkpoint)
        expected, found = weights(whole), weights(resumed)
        assert expected.keys() == found.keys()
        different = [name for name in expected if not torch.equal(expected[name], found[name])]
        assert not different, stage
        start = ("--model.init_args.init_from", whole / "export")
    other = (f"{TASK}.seed", 9, "--ckpt_path", checkpoint, *start_of(stage))
    with pytest.raises(ValueError, match="other data"):
        fit(stage, "other", *other)


def start_of(stage: str) -> tuple[object, ...]:
    before = STAGES[STAGES.index(stage) - 1]
    return ("--model.init_args.init_from", f"{before}-whole/export")


def whole_module(stage: str) -> type:
    from triptych.lit_modules.commune.agent_pretraining import AgentPretraining
    from triptych.lit_modules.commune.thought_adapter import ThoughtAdapter
    from triptych.lit_modules.commune.thought_autoencoder import ThoughtAutoencoder

    return dict(zip(STAGES, (AgentPretraining, ThoughtAutoencoder, ThoughtAdapter), strict=True))[
        stage
    ]
