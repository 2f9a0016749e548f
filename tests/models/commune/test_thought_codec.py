"""The codec: statistics, masks, latents, saving and loading."""

import json
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from triptych.models.commune.perceptron import Perceptron
from triptych.models.commune.state_standardizer import StateStandardizer
from triptych.models.commune.thought_codec import CONFIG_FILE, ThoughtCodec, ThoughtCodecConfig

SIZES = [3, 5]
OWNERS = [1, -1, 0, 1]


def states(num_samples: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(num_samples, sum(SIZES), generator=generator) + 10


def fitted(**settings_of_codec: object) -> ThoughtCodec:
    codec = ThoughtCodec(ThoughtCodecConfig(SIZES, 4, **settings_of_codec))
    codec.fit_statistics(states())
    return codec


def test_a_perceptron_is_its_layers():
    model = Perceptron(2, 1, (2,), "leaky_relu")
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        model.layers[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model.layers[1].weight.copy_(torch.tensor([[1.0, 10.0]]))
        model.layers[1].bias.fill_(0.5)
    # Hidden: (1 - 3, 2 + 1) = (-2, 3) -> (-.4, 3).
    assert model(torch.tensor([[1.0, 3.0]])).item() == pytest.approx(30.1)
    model.activation = "gelu"
    # gelu(-2) = -2 * .0227501, gelu(3) = 3 * .9986501.
    assert model(torch.tensor([[1.0, 3.0]])).item() == pytest.approx(30.4140, abs=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_slopes_are_the_activations_derivative(activation):
    model = Perceptron(1, 1, (1,), activation).double()
    nn.init.ones_(model.layers[0].weight)
    nn.init.zeros_(model.layers[0].bias)
    values = torch.tensor([[-2.0], [-0.1], [0.3], [4.0]], dtype=torch.float64)
    step = 1e-6
    activate = nn.functional.gelu if activation == "gelu" else nn.LeakyReLU(0.2)
    expected = (activate(values + step) - activate(values - step)) / (2 * step)
    torch.testing.assert_close(model.jacobian_factors(values)[1], expected, rtol=0, atol=1e-8)


def test_z_scores_by_hand():
    standardizer = StateStandardizer(2)
    standardizer.fit(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]))
    # Mean 3, biased variance 8 / 3; the second never moves.
    scores = standardizer(torch.tensor([[5.0, 8.0]]))
    assert scores.tolist() == [[pytest.approx(2 / (8 / 3) ** 0.5), 1.0]]
    torch.testing.assert_close(standardizer.inverse(scores), torch.tensor([[5.0, 8.0]]))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), shift=st.sampled_from([0.0, 1e3]))
def test_statistics_do_not_depend_on_batches(cuts, shift):
    whole, parts = StateStandardizer(8), StateStandardizer(8)
    values = states() + shift
    edges = [0, *sorted(cuts), 40]
    whole.fit(values)
    parts.fit(values[a:b] for a, b in pairwise(edges))
    torch.testing.assert_close(parts.mean_H, whole.mean_H)
    torch.testing.assert_close(parts.scale_H, whole.scale_H)


def test_statistics_that_cannot_be():
    standardizer = StateStandardizer(2)
    with pytest.raises(ValueError, match="call `fit`"):
        standardizer(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=re.escape("(4, 3), expected (samples, 2)")):
        standardizer.fit(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="nan or infinity"):
        standardizer.fit(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="no states"):
        standardizer.fit([])


@pytest.mark.parametrize("hidden", [[], [16], [16, 8]])
def test_latents_have_unit_variance_whatever_the_encoders_scale(hidden):
    codec = fitted(encoder_hidden=hidden, decoder_hidden=hidden)
    latents, reconstruction = codec(states())
    assert reconstruction.shape == (40, 8)
    torch.testing.assert_close(latents.var(0, correction=0), torch.ones(4), rtol=0, atol=1e-3)
    with torch.no_grad():
        codec.encoder.parts[0].layers[-1].weight.mul_(100)
        codec.encoder.parts[0].layers[-1].bias.mul_(100)
    torch.testing.assert_close(codec(states())[0], latents, rtol=0, atol=1e-3)


def test_latent_statistics_of_all_states_hold_in_evaluation():
    codec = fitted(encoder_hidden=[6])
    codec.fit_latent_statistics(states())
    latents = codec.eval().encode(states())
    torch.testing.assert_close(latents.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.var(0, correction=0), torch.ones(4), rtol=0, atol=1e-2)
    torch.testing.assert_close(latents[:3], codec.encode(states()[:3]))  # samples are apart


@pytest.mark.parametrize("hidden", [[], [6]])
def test_an_owned_latent_reads_its_owner_alone(hidden):
    codec = fitted(encoder_hidden=hidden, latent_owners=OWNERS).eval()
    sensitivity = torch.func.jacrev(lambda s: codec.encode(s[None])[0])(states()[0])
    first, second = sensitivity.split(SIZES, 1)
    reads = torch.stack([first.abs().sum(1) > 0, second.abs().sum(1) > 0], 1)
    assert reads.tolist() == [[False, True], [True, True], [True, False], [False, True]]
    # Bit for bit: what agent 0 thinks does not reach the latents of agent 1.
    changed = states()
    changed[:, :3] += 5
    before, after = codec.encode(states()), codec.encode(changed)
    assert torch.equal(before[:, [0, 3]], after[:, [0, 3]])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_encoders_of_owned_latents_may_be_linear():
    codec = fitted(encoder_hidden=[6], latent_owners=OWNERS, owner_hidden=[])
    assert [len(part.layers) for part in codec.encoder.parts] == [2, 1, 1]
    own = fitted(encoder_hidden=[6], latent_owners=OWNERS)
    assert [len(part.layers) for part in own.encoder.parts] == [2, 2, 2]


def test_an_owned_latent_is_nobody_elses():
    assert fitted(latent_owners=OWNERS).may_matter().int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 1]]
    assert fitted().may_matter().all()


def test_states_of_agents_are_joined_and_split():
    codec = fitted()
    parts = [torch.zeros(2, 3), torch.ones(2, 5)]
    assert [part.tolist() for part in codec.split(codec.join(parts))] == [p.tolist() for p in parts]
    with pytest.raises(ValueError, match="agent 1 has 4 instead of 5"):
        codec.join([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match=r"made for 2 agents .* there are 1"):
        codec.join(parts[:1])


def test_decoding_is_in_the_states_units():
    codec = fitted()
    latents = codec.encode(states())
    scores = codec.decoder(latents)
    expected = scores * states().std(0, correction=0) + states().mean(0)
    torch.testing.assert_close(codec.decode(latents), expected)


def test_a_saved_codec_comes_back(tmp_path):
    codec = fitted(
        encoder_hidden=[6], latent_owners=OWNERS, activation="gelu", agent_names=["a", "b"]
    )
    codec(states())
    codec.eval().save(tmp_path)
    loaded = ThoughtCodec.load(tmp_path, SIZES, ["a", "b"])
    assert loaded.config == codec.config
    for mine, theirs in zip(loaded(states()), codec(states()), strict=True):
        assert torch.equal(mine, theirs)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_codec_of_other_agents_is_refused(tmp_path):
    fitted(agent_names=["tiny", "large"]).save(tmp_path)
    with pytest.raises(ValueError, match="large has 6 instead of 5"):
        ThoughtCodec.load(tmp_path, [3, 6])
    with pytest.raises(ValueError, match=re.escape("2 agents (tiny, large) and there are 3")):
        ThoughtCodec.load(tmp_path, agent_names=["tiny", "large", "huge"])
    with pytest.raises(ValueError, match="agent 0 is 'large' instead of 'tiny'"):
        ThoughtCodec.load(tmp_path, SIZES, ["large", "tiny"])
    sizes = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**sizes, "activation": "gelu"}))
    with pytest.raises(ValueError, match="not of the same codec"):
        ThoughtCodec.load(tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=CONFIG_FILE):
        ThoughtCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state_sizes": []}, "give each agent's width"),
        ({"num_latents": 0}, "num_latents is 0"),
        ({"agent_names": ["a"]}, "1 names for the 2 agents"),
        ({"latent_owners": [0]}, "1 entries for 4 latents"),
        ({"latent_owners": [0, 1, 2, -2]}, re.escape("latent_owners names [-2, 2]")),
    ],
)
def test_sizes_that_do_not_fit(changed, words):
    with pytest.raises(ValueError, match=words):
        ThoughtCodecConfig(**{"state_sizes": SIZES, "num_latents": 4, **changed})


def test_layers_that_do_not_exist():
    with pytest.raises(ValueError, match="activation is 'relu'"):
        Perceptron(1, 1, (), "relu")
    with pytest.raises(ValueError, match="widths are"):
        Perceptron(1, 1, (0,))
