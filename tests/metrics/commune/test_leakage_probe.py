import pytest
import torch

from triptych.metrics.commune.leakage_probe import probe_accuracy


def samples(num=1200):
    torch.manual_seed(0)
    message = torch.randn(num, 6)
    return message[:800], message[800:], message


def test_what_is_written_plainly_is_found_by_a_linear_probe():
    fit, held_out, message = samples()
    label = (message[:, 2] > 0).long()
    accuracy = probe_accuracy(fit, label[:800], held_out, label[800:], 2)
    assert accuracy > 0.95


def test_an_exclusive_or_is_found_by_a_nonlinear_probe_alone():
    fit, held_out, message = samples()
    label = ((message[:, 0] > 0) ^ (message[:, 1] > 0)).long()
    linear = probe_accuracy(fit, label[:800], held_out, label[800:], 2)
    nonlinear = probe_accuracy(fit, label[:800], held_out, label[800:], 2, hidden=32)
    assert linear < 0.6
    assert nonlinear > 0.85


def test_nothing_is_found_where_there_is_nothing():
    fit, held_out, _ = samples()
    label = torch.randint(5, (1200,))
    accuracy = probe_accuracy(fit, label[:800], held_out, label[800:], 5)
    assert accuracy == pytest.approx(0.2, abs=0.06)  # three standard errors of 400


def test_messages_that_are_all_alike_give_the_commonest_class():
    label = torch.tensor([1, 1, 0])
    same = torch.ones(3, 4)
    assert probe_accuracy(same, label, same[:2], torch.tensor([1, 0]), 2) == 0.5


def test_the_random_state_is_left_alone():
    fit, held_out, message = samples(900)
    label = (message[:, 0] > 0).long()
    before = torch.get_rng_state()
    probe_accuracy(fit, label[:800], held_out, label[800:], 2, num_steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_no_messages_are_refused():
    with pytest.raises(ValueError, match="to be scored on"):
        probe_accuracy(torch.ones(0, 2), torch.ones(0).long(), torch.ones(1, 2), torch.ones(1), 2)
