"""bfloat16 weights learn as float32 weights do."""

import copy
import io

import pytest
import torch
from torch import nn

from triptych.models.remember.values import rounding_optimizers
from triptych.models.remember.values.rounding_optimizers import RoundingAdamW, RoundingSGD
from triptych.models.remember.values.row_optimizers import build_row_optimizer

S, D = 1024, 64  # enough weights for means to 1%


def start() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(S, D, generator=generator) * 1024**-0.5).bfloat16()


def noisy_gradients(num_steps: int, size: float = 1.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Their mean, and one for each step; the noise is three times as large."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(S, D, generator=generator) * size
    noise = [torch.randn(S, D, generator=generator) * 3 * size for _ in range(num_steps)]
    return mean, [(mean + one).bfloat16().float() for one in noise]


def trained(optimizer_class, gradients, dtype, **settings) -> torch.Tensor:
    weight = nn.Parameter(start().to(dtype))
    optimizer = optimizer_class([weight], **settings)
    for gradient in gradients:
        weight.grad = gradient.to(dtype)
        optimizer.step()
    return weight.detach().float()


def row_trained(name: str, gradients, dtype, **settings) -> torch.Tensor:
    table, optimizer = start().to(dtype), build_row_optimizer(name, **settings)
    for gradient in gradients:
        optimizer.step(table, torch.arange(S), gradient)
    return table.float()


def kept(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after * before).sum() / before.square().sum())


@pytest.mark.parametrize("optimizer_class", [RoundingAdamW, RoundingSGD])
def test_decay_alone(optimizer_class):
    gradients = [torch.zeros(S, D)] * 200
    decayed = trained(optimizer_class, gradients, torch.bfloat16, lr=1e-3, weight_decay=0.1)
    assert kept(start().float(), decayed) == pytest.approx((1 - 1e-4) ** 200, rel=1e-3)


def test_torch_loses_that_decay():
    gradients = [torch.zeros(S, D)] * 200
    same = trained(torch.optim.AdamW, gradients, torch.bfloat16, lr=1e-3, weight_decay=0.1)
    assert torch.equal(same, start().float())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_alone_of_rows(name):
    gradients, rates = [torch.zeros(S, D)] * 200, {"learning_rate": 1e-3, "weight_decay": 0.1}
    decayed, exact = (row_trained(name, gradients, t, **rates) for t in (torch.bfloat16, None))
    before = start().float()
    assert kept(before, exact) < 0.99
    assert kept(before, decayed) == pytest.approx(kept(before, exact), rel=1e-3)


@pytest.mark.parametrize("rate", [1e-3, 1e-4, 1e-5])
def test_progress_along_the_mean_gradient(rate):
    mean, gradients = noisy_gradients(100, 1e-4)
    settings = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": 0.0}
    rounded = trained(RoundingAdamW, gradients, torch.bfloat16, **settings)
    exact = trained(torch.optim.AdamW, gradients, torch.float32, **settings)
    progress, expected = (float(((start() - t) * mean.sign()).mean()) for t in (rounded, exact))
    assert progress == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("name", "rate"), [("sgd", 1e-5), ("adamw", 1e-4), ("adagrad", 1e-4)])
def test_progress_of_rows(name, rate):
    mean, gradients = noisy_gradients(100)
    both = (row_trained(name, gradients, t, learning_rate=rate) for t in (torch.bfloat16, None))
    progress, expected = (float(((start() - t) * mean.sign()).mean()) for t in both)
    assert progress == pytest.approx(expected, rel=0.02)


def test_sgd_makes_the_progress_of_float32():
    mean, gradients = noisy_gradients(100)
    rounded = trained(RoundingSGD, gradients, torch.bfloat16, lr=1e-5)
    exact = trained(torch.optim.SGD, gradients, torch.float32, lr=1e-5)
    progress, expected = (float(((start() - t) * mean.sign()).mean()) for t in (rounded, exact))
    assert progress == pytest.approx(expected, rel=0.02)


def test_float32_weights_move_as_under_torch():
    _, gradients = noisy_gradients(3)
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    ours = trained(RoundingAdamW, gradients, torch.float32, **settings)
    assert torch.equal(
        ours, trained(torch.optim.AdamW, gradients, torch.float32, fused=True, **settings)
    )
    ours = trained(RoundingSGD, gradients, torch.float32, **settings)
    assert torch.equal(ours, trained(torch.optim.SGD, gradients, torch.float32, **settings))


def test_gradients_and_their_absence_are_kept():
    moved, still = nn.Parameter(start()), nn.Parameter(start())
    gradient = moved.grad = torch.ones_like(moved)
    RoundingAdamW([moved, still], lr=1e-2).step()
    assert moved.grad is gradient
    assert still.grad is None
    assert torch.equal(still, start())
    assert not torch.equal(moved, start())


def test_rows_that_are_not_given_keep_every_bit():
    table, optimizer = start(), build_row_optimizer("adamw", 1e-4, weight_decay=0.1)
    rows = torch.tensor([3, 700])
    for _ in range(5):
        optimizer.step(table, rows, torch.ones(2, D))
    others = torch.ones(S, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(table[others], start()[others])
    assert not torch.equal(table[rows], start()[rows])


@pytest.mark.parametrize("optimizer_class", [RoundingAdamW, RoundingSGD])
def test_a_resumed_optimizer_goes_on_to_the_bit(optimizer_class):
    _, gradients = noisy_gradients(6)
    weights = [nn.Parameter(start()), nn.Parameter(start().float()[:, 0].clone())]
    optimizer = optimizer_class(weights, lr=1e-4, weight_decay=0.1)

    def steps(optimizer, weights, gradients):
        for gradient in gradients:
            weights[0].grad, weights[1].grad = gradient.bfloat16(), gradient[:, 0]
            optimizer.step()

    steps(optimizer, weights, gradients[:3])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_weights = [nn.Parameter(w.detach().clone()) for w in weights]
    resumed = optimizer_class(resumed_weights, lr=1e-4, weight_decay=0.1)
    resumed.load_state_dict(torch.load(file))
    steps(optimizer, weights, gradients[3:])
    steps(resumed, resumed_weights, gradients[3:])
    for weight, other in zip(weights, resumed_weights, strict=True):
        assert torch.equal(weight, other)
    if optimizer_class is RoundingAdamW:
        assert resumed.state[resumed_weights[0]]["exp_avg"].dtype == torch.float32


def test_a_resumed_row_optimizer_goes_on_to_the_bit():
    _, gradients = noisy_gradients(6)
    table, optimizer = start(), build_row_optimizer("sgd", 1e-4)
    for gradient in gradients[:3]:
        optimizer.step(table, torch.arange(S), gradient)
    other, resumed = table.clone(), build_row_optimizer("sgd", 1e-4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in gradients[3:]:
        optimizer.step(table, torch.arange(S), gradient)
        resumed.step(other, torch.arange(S), gradient)
    assert torch.equal(table, other)


def test_parts_of_a_large_table_are_updated_alike(monkeypatch):
    _, gradients = noisy_gradients(3)
    whole, parts = (RoundingAdamW([nn.Parameter(start())], lr=1e-2) for _ in range(2))
    for optimizer, largest in ((whole, 1 << 24), (parts, 100 * D)):
        monkeypatch.setattr(rounding_optimizers, "_LARGEST_COPY", largest)
        for gradient in gradients:
            optimizer.param_groups[0]["params"][0].grad = gradient.bfloat16()
            optimizer.step()
    (a,), (b,) = whole.param_groups[0]["params"], parts.param_groups[0]["params"]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(whole.state[a][name], parts.state[b][name])
    torch.testing.assert_close(a, b, rtol=2**-6, atol=1e-6)  # of a rounding each step


@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_a_gradient_scaler_unscales_and_skips(factor):
    """A step with an infinite gradient is skipped; another is that of the gradient itself."""
    weight, other = nn.Parameter(start()), nn.Parameter(start())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, plain = RoundingAdamW([weight], lr=1e-2), RoundingAdamW([other], lr=1e-2)
    scaler.scale(weight.float().square().sum() * factor).backward()
    scaler.step(optimizer)
    other.float().square().sum().backward()
    plain.step()
    expected = other if factor == 1.0 else start()
    torch.testing.assert_close(weight.detach(), expected.detach(), rtol=2**-7, atol=0)
    assert not torch.equal(other, start())


def test_a_closure_is_called_once():
    weight = nn.Parameter(start())
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        weight.grad = torch.ones_like(weight)
        return 5

    assert RoundingAdamW([weight], lr=1e-2).step(closure) == 5
    assert calls == [True]
    assert not torch.equal(weight, start())


def test_momentum_is_refused():
    with pytest.raises(ValueError, match="neither momentum nor maximize"):
        RoundingSGD([nn.Parameter(start())], lr=1e-2, momentum=0.9)
