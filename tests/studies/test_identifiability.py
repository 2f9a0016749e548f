"""The identifiability study in small; its linear algebra against gradient steps."""

import json

import pytest
import torch

from tests.studies.conftest import redrawn
from triptych.datamodules.commune.synthetic_thoughts import make_thoughts
from triptych.models.commune.thought_codec import ThoughtCodec, ThoughtCodecConfig
from triptych.studies.commune.codec_training import train_codec
from triptych.studies.commune.identifiability_fits import Fit, measure, objective_of, run_fit
from triptych.studies.commune.linear_codec_fit import (
    WhitenedStates,
    draw_plain,
    fit_rotation,
    set_linear_codec,
)
from triptych.studies.identifiability import SPARSE_24, main

SIZES = (3, 2, 3)


@pytest.fixture(scope="module")
def sparse() -> dict:
    """A small row-sparse problem, whitened, and its fit."""
    thoughts = make_thoughts("row_sparse_linear", SIZES, 16, 3000, seed=0, latents_per_row=2)
    codec = ThoughtCodec(ThoughtCodecConfig([16, 16], 8))
    codec.fit_statistics(thoughts.states_NH)
    scores = codec.standardize(thoughts.states_NH)
    whitened = WhitenedStates(scores, 8)
    rotation, decoder = fit_rotation(whitened.mix_HZ, 0.1, seed=0)
    set_linear_codec(codec, rotation @ whitened.filter_ZH, decoder, thoughts.states_NH)
    return {
        "thoughts": thoughts,
        "codec": codec,
        "scores": scores,
        "whitened": whitened,
        "rotation": rotation,
        "decoder": decoder,
    }


def test_whitening_keeps_everything(sparse):
    white = sparse["whitened"].whiten(sparse["scores"])
    torch.testing.assert_close(white.mT @ white / 3000, torch.eye(8), rtol=0, atol=1e-3)
    back = white @ sparse["whitened"].mix_HZ.mT
    torch.testing.assert_close(back, sparse["scores"], rtol=0, atol=1e-2)


def test_the_objective_on_moments_is_that_of_the_codec_on_samples(sparse):
    rotation, decoder = sparse["rotation"], sparse["decoder"]
    error = (sparse["whitened"].mix_HZ - decoder @ rotation).square().sum()
    expected = (error + 0.1 * decoder.abs().sum()).item()
    with torch.no_grad():
        found = objective_of(SPARSE_24, "penalty")(sparse["codec"], sparse["scores"]).item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_gradient_steps_find_nothing_better(sparse):
    objective = objective_of(SPARSE_24, "penalty")
    with torch.no_grad():
        before = objective(sparse["codec"], sparse["scores"]).item()
    codec = ThoughtCodec(sparse["codec"].config)
    codec.load_state_dict(sparse["codec"].state_dict())
    train_codec(codec, sparse["scores"], objective, 60, 1e-3, batch_size=1000)
    codec.fit_latent_statistics(sparse["thoughts"].states_NH)
    with torch.no_grad():
        after = objective(codec.eval(), sparse["scores"]).item()
    # Uncorrelated to the last digit is a little more than the objective asks for.
    assert 0.98 * before < after < 1.02 * before


def test_every_turn_lowers_the_objective(sparse):
    mix = sparse["whitened"].mix_HZ

    def objective(num_turns: int) -> float:
        rotation, decoder = fit_rotation(mix, 0.9, 3, num_turns, tolerance=0.0)
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(8), rtol=0, atol=1e-5)
        return float((mix - decoder @ rotation).square().sum() + 0.9 * decoder.abs().sum())

    values = [objective(number) for number in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)


def test_latents_come_back_with_the_penalty_and_not_without(sparse):
    outcome = measure(sparse["codec"], sparse["thoughts"], 2000)
    assert outcome["mcc"] > 0.97
    assert outcome["spearman_mcc"] > 0.95
    assert outcome["routing"] == 1.0
    assert outcome["diagonal"] > 0.95
    assert outcome["off_diagonal"] < 0.05
    plain_map, decoder = draw_plain(sparse["whitened"].mix_HZ, seed=0)
    plain = ThoughtCodec(sparse["codec"].config)
    plain.standardizer.load_state_dict(sparse["codec"].standardizer.state_dict())
    states = sparse["thoughts"].states_NH
    set_linear_codec(plain, plain_map @ sparse["whitened"].filter_ZH, decoder, states)
    with torch.no_grad():
        lost = objective_of(SPARSE_24, "plain autoencoder")(plain, sparse["scores"]).item()
    assert lost == pytest.approx(0, abs=1e-2)  # it reconstructs everything
    assert measure(plain, sparse["thoughts"], 2000)["mcc"] < 0.8


def test_the_restart_with_the_lowest_objective_counts():
    outcome = run_fit(Fit(SPARSE_24, "penalty", seed=1, num_restarts=2))
    assert len(outcome["objectives"]) == 2
    assert outcome["objective"] == min(outcome["objectives"])


def test_smoke_writes_everything_and_does_not_repeat_itself(tmp_path, monkeypatch):
    words = ["--preset", "smoke", "--out", str(tmp_path), "--workers", "1"]
    main(words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["arms"]) >= {
        "row sparse linear, 24 latents, penalty",
        "row sparse linear, 24 latents, FastICA",
        "block dense nonlinear, 6 latents, plain autoencoder",
    }
    assert results["checks"]["row sparse linear, 24 latents: MCC"]["bound"] == 0.97
    assert results["checks"]["row sparse linear, 24 latents: MCC"]["held"]
    assert results["held"] == all(check["held"] for check in results["checks"].values())
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert redrawn("identifiability", tmp_path) == (tmp_path / "figure.png").read_bytes()
    monkeypatch.setattr("triptych.studies.identifiability.run_fit", None)  # finished fits are read
    assert main(words)["arms"] == results["arms"]


def test_problems_that_do_not_exist_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--only", "77", "--out", str(tmp_path)])
    assert "names none of: row sparse linear, 24 latents" in capsys.readouterr().err
