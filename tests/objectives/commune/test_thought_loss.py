import math

import pytest
import torch

from triptych.objectives.commune.thought_loss import (
    ThoughtLossConfig,
    mean_embedding,
    reinforce_terms,
    straight_through_terms,
    straight_through_tokens,
    teacher_forced_terms,
)

# Three tokens; 0 and 1 are orthogonal, 2 is the sum of both.
EMBEDDING = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def test_mean_embedding_leaves_padding_out():
    values = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert mean_embedding(values, mask).tolist() == [[2, 2]]


def test_teacher_forced_terms_by_hand():
    # Certain of token 0 where the reference says 1: cos 0, and a distance of 1.
    logits = torch.tensor([[[0.0, 0.0, -1e9], [5.0, 5.0, 5.0]]])
    reference, mask = torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    terms = teacher_forced_terms(logits, reference, mask, EMBEDDING, ThoughtLossConfig())
    # half 0, half 1 against 1: cos 45 degrees; the padded position counts for nothing
    assert terms.semantic.item() == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)
    assert terms.fluency.item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms.loss.item() == pytest.approx(1 - math.sqrt(0.5) + math.log(2), abs=1e-6)


def test_weights_and_temperature():
    logits = torch.tensor([[[2.0, 0.0, -1e9]]])
    reference, mask = torch.tensor([[0]]), torch.tensor([[True]])
    config = ThoughtLossConfig(semantic_weight=2.0, fluency_weight=0.5, temperature=2.0)
    terms = teacher_forced_terms(logits, reference, mask, EMBEDDING, config)
    p, q = math.exp(1) / (math.exp(1) + 1), 1 / (math.exp(1) + 1)  # at temperature 2
    semantic, fluency = 1 - p / math.hypot(p, q), math.log(1 + math.exp(-2))  # at 1
    assert terms.loss.item() == pytest.approx(2 * semantic + 0.5 * fluency, abs=1e-6)


def test_sampled_ids_alone_give_the_semantic_term_no_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    ids = logits.softmax(-1).multinomial(1)
    assert not EMBEDDING[ids].requires_grad
    tokens = straight_through_tokens(logits, 1.0)
    assert set(tokens.detach().round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    (tokens @ EMBEDDING)[:, 0].sum().backward()
    assert logits.grad.abs().sum() > 0


def test_straight_through_tokens_are_drawn_from_the_softmax():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3)
    drawn = straight_through_tokens(logits, 0.5, torch.Generator().manual_seed(0)).mean(0)
    # three standard errors of the largest
    torch.testing.assert_close(drawn, torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0)


def test_straight_through_terms_are_those_of_what_was_said():
    tokens = torch.eye(3)[torch.tensor([[1, 2], [0, 0]])]
    logits = torch.zeros(2, 2, 3)
    mask = torch.tensor([[True, False], [True, True]])
    meant = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    terms = straight_through_terms(tokens, logits, mask, meant, EMBEDDING, ThoughtLossConfig())
    assert terms.semantic.item() == pytest.approx(0.5)
    assert terms.fluency.item() == pytest.approx(math.log(3))


def test_reinforce_has_the_gradient_of_the_expected_distance():
    """Over many samples, against the derivative of sum_v p_v d_v worked out by hand."""
    num = 40_000
    base = torch.tensor([0.5, -0.3, 0.1])
    p = base.softmax(0)
    distance = torch.tensor([0.0, 1.0, 1 - math.sqrt(0.5)])  # to token 0
    expected = p * (distance - (p * distance).sum())
    logits = base.repeat(num, 1, 1).requires_grad_()
    sampled = p.multinomial(num, True, generator=torch.Generator().manual_seed(0))[:, None]
    meant = torch.tensor([[1.0, 0.0]]).expand(num, 2)
    config = ThoughtLossConfig("reinforce", fluency_weight=0.0)
    mask = torch.ones(num, 1, dtype=torch.bool)
    terms = reinforce_terms(logits, sampled, mask, meant, EMBEDDING, config)
    terms.loss.backward()
    torch.testing.assert_close(logits.grad.sum((0, 1)), expected, atol=0.01, rtol=0)
    assert terms.semantic.item() == pytest.approx(float((p * distance).sum()), abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThoughtLossConfig(semantic_weight=0, fluency_weight=0), "one above"),
        (lambda: ThoughtLossConfig(semantic_weight=-1), "at least 0"),
        (lambda: ThoughtLossConfig(temperature=0), "above 0"),
        (
            lambda: reinforce_terms(
                torch.zeros(1, 1, 3),
                torch.zeros(1, 1, dtype=torch.int64),
                torch.ones(1, 1).bool(),
                torch.ones(1, 2),
                EMBEDDING,
                ThoughtLossConfig("reinforce"),
            ),
            "at least 2",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
