"""Jacobian penalties against constants by hand, autograd's own Jacobian, and their expectations."""

import math

import pytest
import torch
from torch import Tensor, nn

from triptych.models.commune.perceptron import Perceptron
from triptych.objectives.commune.jacobian import (
    block_l1,
    block_squares,
    closed_form_jacobian,
    closed_form_l1,
    closed_form_squares,
    column_l1,
    decorrelation,
    element_l1,
    group_norm,
    jacobian,
    probed_squares,
)
from triptych.objectives.commune.jacobian_blocks import product_l1
from triptych.objectives.commune.jacobian_penalty import JacobianPenalty

SIZES = [4, 7]
NUM_ROWS, NUM_LATENTS, BATCH = 11, 5, 6


def make_decoder(hidden: tuple[int, ...], activation: str = "gelu") -> Perceptron:
    torch.manual_seed(3)
    return Perceptron(NUM_LATENTS, NUM_ROWS, hidden, activation).double()


def make_latents() -> Tensor:
    return torch.randn(
        BATCH, NUM_LATENTS, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )


def reference_jacobian(decoder: nn.Module, latents: Tensor) -> Tensor:
    """One sample at a time by reverse mode: shares nothing with what is tested."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(decoder, sample, create_graph=True)
            for sample in latents
        ]
    )


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)], ids=["linear", "one hidden", "two hidden"])
def test_jacobians_equal_autograds(hidden, activation):
    decoder, latents = make_decoder(hidden, activation), make_latents()
    expected = reference_jacobian(decoder, latents)
    for chunk_size in (None, 2):
        torch.testing.assert_close(jacobian(decoder, latents, chunk_size), expected)
    if len(hidden) < 2:
        torch.testing.assert_close(closed_form_jacobian(decoder, latents), expected)
    else:
        with pytest.raises(ValueError, match="2 hidden layers has no closed form"):
            closed_form_jacobian(decoder, latents)


def by_hand() -> Perceptron:
    """W2 diag(s) W1 = [[1, 1], [-1, 2]] diag(s) [[1, 0], [2, -1]] without biases."""
    decoder = Perceptron(2, 2, (2,), "leaky_relu")
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
        decoder.layers[1].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]))
        for layer in decoder.layers:
            layer.bias.zero_()
    return decoder


def test_penalties_by_hand():
    # At (1, 1) both hidden units are 1 > 0: J = [[3, -1], [3, -2]].
    # At (1, 3) the second is -1: s = (1, .2), J = [[1.4, -.2], [-.2, -.4]].
    decoder, latents = by_hand(), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    expected = torch.tensor([[[3.0, -1.0], [3.0, -2.0]], [[1.4, -0.2], [-0.2, -0.4]]])
    torch.testing.assert_close(closed_form_jacobian(decoder, latents), expected)
    l1 = (9 + 2.2) / 2
    assert closed_form_l1(decoder, latents, reduction="sum").item() == pytest.approx(l1)
    assert closed_form_l1(decoder, latents, reduction="mean").item() == pytest.approx(l1 / 4)
    assert element_l1(expected, reduction="mean").item() == pytest.approx(l1 / 4)
    # Two agents of one row: squares are means over samples of single elements.
    squares = torch.tensor([[(9 + 1.96) / 2, (1 + 0.04) / 2], [(9 + 0.04) / 2, (4 + 0.16) / 2]])
    torch.testing.assert_close(closed_form_squares(decoder, latents, [1, 1]), squares)
    group = sum(math.sqrt(value) for value in (5.48, 0.52, 4.52, 2.08))
    assert group_norm(squares, [1, 1], reduction="sum").item() == pytest.approx(group)
    assert group_norm(squares, [1, 1], reduction="mean").item() == pytest.approx(group / 4)
    # One agent of two rows: its mean is of root mean squares, over 2 rows.
    joined = squares.sum(0, keepdim=True)
    rms = (math.sqrt(10 / 2) + math.sqrt(2.6 / 2)) / 2
    assert group_norm(joined, [2], reduction="mean").item() == pytest.approx(rms)


def test_a_linear_decoder_is_its_weight():
    decoder = Perceptron(2, 3)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.0]]))
    latents = torch.zeros(4, 2)
    assert closed_form_l1(decoder, latents, reduction="sum").item() == 6.5
    assert block_l1(decoder, latents, 3, 2, reduction="sum").item() == 6.5
    squares = closed_form_squares(decoder, latents, [1, 2])
    assert squares.tolist() == [[1.0, 4.0], [0.25, 9.0]]


def test_decorrelation_by_hand():
    # Covariance [[1, 1], [1, 4]]: off the identity by 0, 1, 1, 3.
    latents = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [-1.0, -2.0]]) + 7
    latents = torch.stack([latents[:, 0], latents[:, 1]], 1)
    expected = 0 + 2 * (2 - 0) ** 2 + (4 - 1) ** 2
    assert decorrelation(latents, reduction="sum").item() == pytest.approx(expected)
    assert decorrelation(latents, reduction="mean").item() == pytest.approx(expected / 4)


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
@pytest.mark.parametrize("max_elements", [1, 100, 10**6])
def test_closed_form_l1_and_its_gradients(activation, max_elements):
    decoder, latents = make_decoder((8,), activation), make_latents().requires_grad_()
    wanted = [latents, *(layer.weight for layer in decoder.layers), decoder.layers[0].bias]
    expected = reference_jacobian(decoder, latents).abs().sum((1, 2)).mean()
    found = closed_form_l1(decoder, latents, reduction="sum", max_elements=max_elements)
    torch.testing.assert_close(found, expected)
    options = {"allow_unused": True, "materialize_grads": True}
    for mine, theirs in zip(
        torch.autograd.grad(found, wanted, **options),
        torch.autograd.grad(expected, wanted, **options),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("needed", [(), (0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("max_elements", [1, 20, 70, 10**6])
def test_product_l1_in_turns_and_blocks(max_elements, needed):
    """Whatever is held at once and whichever gradients are asked for: values of the whole."""
    torch.manual_seed(2)
    factors = [torch.randn(shape, dtype=torch.float64) for shape in ((5, 4), (7, 4), (4, 3))]
    for place in needed:
        factors[place].requires_grad_()
    out_RW, slopes_BW, in_WC = factors
    expected = torch.einsum("rw,bw,wc->brc", out_RW, slopes_BW, in_WC).abs().sum((1, 2)).mean()
    found = product_l1(out_RW, slopes_BW, in_WC, max_elements)
    torch.testing.assert_close(found, expected)
    wanted = [factors[place] for place in needed]
    if wanted:
        torch.testing.assert_close(
            torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted)
        )


@pytest.mark.parametrize("out_rows", [3, 40], ids=["block formed", "gram"])
def test_closed_form_squares_equal_those_of_the_jacobian(out_rows):
    torch.manual_seed(0)
    decoder, latents = Perceptron(4, out_rows + 2, (8,), "gelu").double(), make_latents()[:, :4]
    expected = reference_jacobian(decoder, latents).square().mean(0)
    sizes = [out_rows, 2]
    expected = torch.stack([expected[:out_rows].sum(0), expected[out_rows:].sum(0)])
    torch.testing.assert_close(closed_form_squares(decoder, latents, sizes), expected)
    torch.testing.assert_close(block_squares(jacobian(decoder, latents), sizes), expected)


def test_gradcheck():
    generator = torch.Generator().manual_seed(1)
    draws = [
        torch.randn(s, dtype=torch.float64, generator=generator) for s in ((4, 3), (2, 3), (3, 5))
    ]
    inputs = [value.requires_grad_() for value in draws]
    assert torch.autograd.gradcheck(lambda *args: product_l1(*args, 7), inputs)
    decoder, latents = make_decoder((6,)), make_latents().requires_grad_()
    for function in (
        lambda z: closed_form_l1(decoder, z, reduction="mean"),
        lambda z: element_l1(jacobian(decoder, z, 2), reduction="sum"),
        lambda z: group_norm(closed_form_squares(decoder, z, SIZES), SIZES, reduction="mean"),
        lambda z: group_norm(
            probed_squares(decoder, z, SIZES, 1, torch.Generator().manual_seed(0)),
            SIZES,
            reduction="sum",
        ),
        lambda z: column_l1(
            decoder, z, 2, reduction="sum", generator=torch.Generator().manual_seed(0)
        ),
        lambda z: decorrelation(z, reduction="sum"),
    ):
        assert torch.autograd.gradcheck(function, [latents])


ESTIMATES = {
    "columns": lambda decoder, z, g: column_l1(decoder, z, 2, reduction="sum", generator=g),
    "blocks": lambda decoder, z, g: block_l1(decoder, z, 4, 2, reduction="sum", generator=g),
    "probes": lambda decoder, z, g: probed_squares(decoder, z, SIZES, 1, g).sum(),
}


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[Tensor, Tensor]]:
    """Exact values and gradients with respect to the first layer's weight."""
    decoder = make_decoder((8,))
    full = reference_jacobian(decoder, make_latents())
    values = {"l1": full.abs().sum((1, 2)).mean(), "squares": full.square().sum((1, 2)).mean()}
    weight = decoder.layers[0].weight
    grads = {
        key: torch.autograd.grad(value, weight, retain_graph=True)[0]
        for key, value in values.items()
    }
    return {key: (value.detach(), grads[key]) for key, value in values.items()}


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_and_their_gradients_are_unbiased(name, truth):
    decoder, latents = make_decoder((8,)), make_latents()
    generator = torch.Generator().manual_seed(0)
    weight = decoder.layers[0].weight
    values, grads = [], []
    for _ in range(400):
        value = ESTIMATES[name](decoder, latents, generator)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, weight)[0].flatten())
    value, grad = truth["squares" if name == "probes" else "l1"]
    drawn = torch.stack(values)
    standard_error = drawn.std() / math.sqrt(len(drawn))
    assert standard_error > 0
    assert (drawn.mean() - value).abs() <= 3 * standard_error
    # Forty elements at once: the mean of their squared standard scores is 1 in expectation.
    drawn_grads = torch.stack(grads)
    scores = (drawn_grads.mean(0) - grad.flatten()) / (drawn_grads.std(0) / math.sqrt(len(drawn)))
    assert scores.abs().max() < 4.5
    assert scores.square().mean() < 2.0


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_drawing_everything_is_exact(hidden):
    decoder, latents = make_decoder(hidden), make_latents()
    expected = reference_jacobian(decoder, latents).abs().sum((1, 2)).mean()
    for chunk_size in (None, 2):
        found = column_l1(decoder, latents, NUM_LATENTS, reduction="sum", chunk_size=chunk_size)
        torch.testing.assert_close(found, expected)
    if len(hidden) < 2:
        found = block_l1(decoder, latents, NUM_ROWS, NUM_LATENTS, reduction="mean")
        torch.testing.assert_close(found, expected / (NUM_ROWS * NUM_LATENTS))


def test_columns_are_drawn_without_replacement():
    # An identity decoder has one element a column: any two distinct columns sum to 2 of 5.
    latents = make_latents()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found = column_l1(lambda z: z * 1, latents, 2, reduction="sum", generator=generator)
        assert found.item() == pytest.approx(5.0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(5.0, dtype=torch.float64)
    drawn = {
        round(
            column_l1(
                lambda z: z * weights, latents, 2, reduction="sum", generator=generator
            ).item(),
            6,
        )
        for _ in range(10)
    }
    assert len(drawn) > 1


def test_probes_are_exact_for_one_row_an_agent():
    # A single sign squared is 1.
    torch.manual_seed(0)
    decoder, latents = Perceptron(3, 2, (4,), "gelu").double(), make_latents()[:, :3]
    expected = reference_jacobian(decoder, latents).square().mean(0)
    torch.testing.assert_close(probed_squares(decoder, latents, [1, 1]), expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("norm", "estimator"),
    [("l1", "closed_form"), ("l1", "exact"), ("l1", "columns"), ("l1", "blocks"),
     ("group", "closed_form"), ("group", "exact")],
)  # fmt: skip
def test_the_object_computes_what_its_settings_say(norm, estimator, reduction):
    # So many columns and rows are all of them, and every estimator is exact.
    penalty = JacobianPenalty(reduction, norm, estimator, num_columns=99, num_rows=99)
    decoder, latents = make_decoder((8,)), make_latents()
    full = reference_jacobian(decoder, latents)
    if norm == "l1":
        expected = full.abs().sum((1, 2)).mean()
        expected = expected / (NUM_ROWS * NUM_LATENTS) if reduction == "mean" else expected
    else:
        squares = full.square().mean(0)
        blocks = [squares[:4].sum(0), squares[4:].sum(0)]
        if reduction == "mean":
            blocks = [blocks[0] / 4, blocks[1] / 7]
        roots = torch.stack(blocks).sqrt()
        expected = roots.mean() if reduction == "mean" else roots.sum()
    torch.testing.assert_close(penalty(decoder, latents, SIZES), expected)


def test_part_of_the_batch():
    penalty = JacobianPenalty("sum", num_samples=2)
    decoder, latents = make_decoder((8,)), make_latents()
    each = reference_jacobian(decoder, latents).abs().sum((1, 2))
    pairs = [(each[i] + each[j]) / 2 for i in range(BATCH) for j in range(i)]
    found = penalty(decoder, latents, SIZES, torch.Generator().manual_seed(0))
    assert min((found - pair).abs() for pair in pairs) < 1e-12


def test_probes_of_the_object():
    penalty = JacobianPenalty("sum", "group", "probes", num_probes=3)
    decoder, latents = make_decoder((8, 6)), make_latents()
    found = penalty(decoder, latents, SIZES, torch.Generator().manual_seed(0))
    squares = probed_squares(decoder, latents, SIZES, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, (squares + 1e-12).sqrt().sum())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduction": "sum", "estimator": "probes"}, "with norm l1 choose closed_form"),
        ({"reduction": "sum", "norm": "group", "estimator": "blocks"}, "exact, probes"),
        ({"reduction": "sum", "num_columns": 0}, "num_columns is 0"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ValueError, match=words):
        JacobianPenalty(**settings)


def test_wrong_arguments_are_named():
    decoder, latents = make_decoder((8,)), make_latents()
    with pytest.raises(ValueError, match="num_columns is 6: draw from 1 to 5"):
        column_l1(decoder, latents, 6, reduction="sum")
    with pytest.raises(ValueError, match="num_rows is 0"):
        block_l1(decoder, latents, 0, 1, reduction="sum")
    with pytest.raises(ValueError, match="num_probes is 0"):
        probed_squares(decoder, latents, SIZES, 0)
    with pytest.raises(ValueError, match="adds up to 12 and the decoder gives 11"):
        probed_squares(decoder, latents, [12])
    with pytest.raises(ValueError, match="reduction is 'max'"):
        decorrelation(latents, reduction="max")
    with pytest.raises(ValueError, match="the decoder is a Sequential"):
        JacobianPenalty("sum")(nn.Sequential(), latents, SIZES)
    with pytest.raises(TypeError, match="reduction"):
        closed_form_l1(decoder, latents)
