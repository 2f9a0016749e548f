"""The language-model loss against hand-computed values, gradcheck, and torch's own fused loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.objectives.language_modeling import (
    IGNORED_LABEL,
    NextTokenNLL,
    chunked_next_token_nll,
    next_token_nll,
)

# Shapes: B batch, T tokens, D hidden width, V vocabulary


def example(
    num_rows: int = 3,
    length: int = 7,
    width: int = 5,
    vocab_size: int = 11,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random hidden states, output weight, and labels of which about a third are ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden_BTD = torch.randn(num_rows, length, width, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(vocab_size, width, generator=generator, dtype=torch.float64)
    labels_BT = torch.randint(vocab_size, (num_rows, length), generator=generator)
    ignored = torch.rand(num_rows, length, generator=generator) < 1 / 3
    labels_BT[ignored] = IGNORED_LABEL
    hidden_BTD, weight_VD = hidden_BTD.to(dtype), weight_VD.to(dtype)
    return hidden_BTD.requires_grad_(), weight_VD.requires_grad_(), labels_BT


def plain(hidden_BTD: torch.Tensor, weight_VD: torch.Tensor, labels_BT: torch.Tensor):
    return next_token_nll(functional.linear(hidden_BTD, weight_VD), labels_BT)


def test_logits_predict_the_next_label_by_hand():
    # Two words with logits (0, ln 3): probabilities 1/4 and 3/4.
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64).expand(2, 4, 2)
    labels = torch.tensor([[0, 1, 0, 1], [1, IGNORED_LABEL, IGNORED_LABEL, 0]])
    nll = next_token_nll(logits, labels)
    rare, common = 1.3862943611198906, 0.2876820724517809  # ln 4, ln 4/3
    expected = [[common, rare, common], [0, 0, rare]]
    torch.testing.assert_close(nll.nats, torch.tensor(expected, dtype=torch.float64))
    assert nll.keep_mask.tolist() == [[True, True, True], [False, False, True]]
    assert nll.num_tokens.item() == 4
    assert nll.sum_nats.item() == pytest.approx(3.3479528671433432)  # 2 ln 4 + 2 ln 4/3


def test_the_shift_is_by_one_and_forward_only():
    # Each position is certain of the token after it: the loss is 0 only with the right shift.
    tokens = torch.tensor([[2, 0, 1, 1, 2]])
    logits = torch.full((1, 5, 3), -1e4)
    logits[0, torch.arange(4), tokens[0, 1:]] = 1e4
    assert next_token_nll(logits, tokens).nats.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_the_first_label_is_never_read():
    hidden, weight, labels = example()
    with_nonsense = labels.clone()
    with_nonsense[:, 0] = 10**6  # no such word
    for nll in (plain, chunked_next_token_nll):
        expected = nll(hidden, weight, labels)
        torch.testing.assert_close(nll(hidden, weight, with_nonsense), expected, rtol=0, atol=0)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 5, 1000])
def test_chunked_equals_plain_in_value_and_gradient(chunk_tokens: int):
    hidden, weight, labels = example()
    upstream = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = plain(hidden, weight, labels)
    nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens)
    assert torch.equal(nll.keep_mask, expected.keep_mask)
    torch.testing.assert_close(nll.nats, expected.nats, rtol=1e-14, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad((nll.nats * upstream).sum(), (hidden, weight)),
        torch.autograd.grad((expected.nats * upstream).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("frozen", ["none", "hidden", "weight"])
def test_gradcheck(frozen: str):
    hidden, weight, labels = example(num_rows=2, length=4, width=3, vocab_size=5)
    hidden.requires_grad_(frozen != "hidden")
    weight.requires_grad_(frozen != "weight")
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_next_token_nll(h, w, labels, chunk_tokens=2).nats, (hidden, weight)
    )


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 3),
    length=st.integers(1, 6),
    chunk_tokens=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_chunked_equals_plain_for_any_labels(
    num_rows: int, length: int, chunk_tokens: int, seed: int
):
    hidden, weight, labels = example(num_rows, length, seed=seed)
    expected = plain(hidden, weight, labels)
    nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens)
    torch.testing.assert_close(nll, expected, rtol=1e-13, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(nll.sum_nats, (hidden, weight)),
        torch.autograd.grad(expected.sum_nats, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.skipif(
    not hasattr(functional, "linear_cross_entropy"), reason="torch has it from 2.13 on"
)
def test_chunked_equals_the_fused_loss_of_torch():
    hidden, weight, labels = example()
    nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens=4)
    theirs = functional.linear_cross_entropy(
        hidden[:, :-1].flatten(0, 1), weight, labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(nll.sum_nats, theirs)
    for ours, peer in zip(
        torch.autograd.grad(nll.sum_nats, (hidden, weight)),
        torch.autograd.grad(theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, peer)


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation, and the rows that meet the output weight."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.largest_numel = 0
        self.num_logit_rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest_numel = max(self.largest_numel, tensor.numel())
        if func is torch.ops.aten.mm.default and result.shape[-1] == self.vocab_size:
            self.num_logit_rows += len(result)
        return result


def test_logits_exist_only_a_chunk_at_a_time_and_where_labels_count():
    num_rows, length, width, vocab_size, chunk_tokens = 4, 64, 3, 101, 16
    hidden, weight, labels = example(num_rows, length, width, vocab_size)
    assert chunk_tokens * vocab_size > max(hidden.numel(), weight.numel())
    num_tokens = int((labels[:, 1:] != IGNORED_LABEL).sum())
    with LargestTensor(vocab_size) as seen:
        nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens)
        assert seen.num_logit_rows == num_tokens
        nll.sum_nats.backward()
    assert seen.num_logit_rows == 2 * num_tokens  # forward, and again in backward
    assert seen.largest_numel == chunk_tokens * vocab_size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_meet_a_float32_softmax(dtype: torch.dtype):
    hidden, weight, labels = example(dtype=dtype)
    rounded = functional.linear(hidden, weight).double()  # the model's own logits
    for nll, logits in (
        (plain(hidden, weight, labels), rounded),
        (
            chunked_next_token_nll(hidden, weight, labels, 4),
            functional.linear(hidden.double(), weight.double()),
        ),
    ):
        assert nll.nats.dtype == torch.float32
        reference = next_token_nll(logits, labels).nats.float()
        torch.testing.assert_close(nll.nats, reference, rtol=1e-6, atol=1e-6)
        grads = torch.autograd.grad(nll.sum_nats, (hidden, weight))
        assert [grad.dtype for grad in grads] == [dtype, dtype]


def test_half_precision_gradients_stay_close_to_double():
    hidden, weight, labels = example(num_rows=8, length=32, dtype=torch.bfloat16)
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = torch.autograd.grad(plain(*exact_inputs, labels).sum_nats, exact_inputs)
    nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens=1)  # one addition a token
    for ours, reference in zip(
        torch.autograd.grad(nll.sum_nats, (hidden, weight)), exact, strict=True
    ):
        error = (ours.double() - reference).norm() / reference.norm()
        assert error < 2**-7  # bfloat16 rounds by up to 2^-9 in each of a few places


def test_autocast_does_not_round_the_logits():
    hidden, weight, labels = example(dtype=torch.float32)
    exact = plain(hidden, weight, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = plain(hidden, weight, labels)
        nll = chunked_next_token_nll(hidden, weight, labels, chunk_tokens=100)
    assert (rounded.nats - exact.nats).abs().max() > 1e-3
    torch.testing.assert_close(nll.nats, exact.nats, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(nll.sum_nats, (hidden, weight)),
        torch.autograd.grad(exact.sum_nats, (hidden, weight)),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 4])
def test_nothing_to_predict_is_zero_with_a_zero_gradient(length: int):
    hidden, weight, _ = example(length=length)
    labels = torch.full((3, length), IGNORED_LABEL)
    for nll in (plain(hidden, weight, labels), chunked_next_token_nll(hidden, weight, labels)):
        assert nll.sum_nats.item() == 0
        assert nll.num_tokens.item() == 0
        for grad in torch.autograd.grad(nll.sum_nats, (hidden, weight)):
            assert not grad.any()


def test_bytes_are_those_of_the_tokens_predicted():
    nll = NextTokenNLL(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
    assert nll.num_bytes(torch.tensor([[100, 20, 3, 4]], dtype=torch.int32)).item() == 24


@pytest.mark.parametrize(
    ("hidden_shape", "weight_shape", "labels_shape", "chunk_tokens", "message"),
    [
        ((2, 4, 3), (5, 3), (2, 3), 8, "not shifted"),
        ((2, 4, 3), (5, 3), (8,), 8, "not shifted"),
        ((8, 3), (5, 3), (8,), 8, "not shifted"),
        ((2, 4, 3), (3, 5), (2, 4), 8, "output layer's weight"),
        ((2, 4, 3), (5, 3), (2, 4), 0, "chunk_tokens must be at least 1"),
    ],
)
def test_mistakes_are_explained(hidden_shape, weight_shape, labels_shape, chunk_tokens, message):
    labels = torch.zeros(labels_shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        chunked_next_token_nll(
            torch.zeros(hidden_shape), torch.zeros(weight_shape), labels, chunk_tokens
        )


def test_logits_and_labels_must_agree():
    with pytest.raises(ValueError, match="not shifted"):
        next_token_nll(torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.int64))
