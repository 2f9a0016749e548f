import pytest
import torch

from triptych.metrics.commune.leakage_probe import discriminant_accuracy, family_accuracies
from triptych.metrics.commune.probe_power import LEAK_SIZES, plant, probe_power


def noise(num, width, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("leak", ["means", "product"])
def test_planted_leaks_have_the_size_that_is_asked_for(leak):
    scores = noise(3000, 12).double()
    labels = torch.randint(5, (3000,), generator=torch.Generator().manual_seed(1))
    wanted = 0.2 + LEAK_SIZES[leak] * 0.8
    generator = torch.Generator().manual_seed(2)
    planted, oracle = plant(scores, labels, 5, leak, wanted, generator)
    assert oracle == pytest.approx(wanted, abs=0.01)
    assert planted.shape == scores.shape
    assert planted.std() == pytest.approx(1.0, abs=0.1)
    means = torch.stack([planted[labels == c].mean(0) for c in range(5)]).norm(dim=1)
    assert bool((means > 0.2).any()) == (leak == "means")  # a product moves no class's mean


def test_probes_see_leaks_where_there_are_messages_and_say_blind_where_there_are_not():
    power = probe_power(noise(2048, 16), noise(1500, 16, 1), 5)
    assert power.sees("means")
    assert power.sees("product", "network")
    assert not power.sees("product", "linear")
    assert "blind" not in power.describe()
    blind = probe_power(noise(200, 512), noise(1500, 512, 1), 5)
    assert not blind.sees("means")
    assert blind.describe().count("blind here") == 2


def test_narrow_and_constant_messages_are_controlled_too():
    for message in (noise(300, 1), torch.ones(300, 4)):
        power = probe_power(message[:200], message[200:], 4)
        assert power.oracle["product"] == pytest.approx(0.7, abs=0.05)
    with pytest.raises(ValueError, match="to be scored on"):
        probe_power(torch.ones(0, 2), torch.ones(1, 2), 2)


def test_discriminant_analysis_is_that_of_scikit_learn():
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    message, label = noise(400, 30), torch.randint(3, (400,))
    message[:, 0] += label
    held_out, held_out_label = noise(2000, 30, 1), torch.randint(3, (2000,))
    held_out[:, 0] += held_out_label
    ours = discriminant_accuracy(message, label, held_out, held_out_label, 3)
    theirs = analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    theirs.fit(message.numpy(), label.numpy())
    assert ours == pytest.approx(theirs.score(held_out.numpy(), held_out_label.numpy()), abs=0.02)


def test_a_network_reads_what_a_linear_probe_reads():
    # 200 full-batch steps without a stop read such a leak at chance: .229 of .308.
    message, held_out = noise(2048, 32), noise(2000, 32, 1)
    label, held_out_label = torch.randint(5, (2048,)), torch.randint(5, (2000,))
    message[:, :5] += 0.5 * torch.eye(5)[label]
    held_out[:, :5] += 0.5 * torch.eye(5)[held_out_label]
    found = family_accuracies(message, label, held_out, held_out_label, 5)
    assert min(found.values()) > 0.26


def test_the_command_says_where_probes_are_blind(capsys):
    from triptych.studies.commune.probe_power import main

    words = ["--messages", "100", "--held_out", "500", "--numbers", "300", "--seeds", "1"]
    (power,) = main(words)
    assert not power.sees("means")
    printed = capsys.readouterr().out
    assert "100 messages of 300 numbers, chance 0.200" in printed
    assert printed.count("blind here") == 2
