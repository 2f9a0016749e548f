"""The recurrent network against torch's cells, on disk, and with another vocabulary."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from triptych.models.diversify.molecules.smiles_rnn import (
    SmilesRNN,
    SmilesRNNConfig,
    is_smiles_rnn,
    load_smiles_rnn,
)
from triptych.models.diversify.molecules.token_recurrence import gru_states

WORDS = ["<bos>", "<eos>", "<pad>", "C", "O", "(", ")"]


def tiny(cell: str = "gru", num_layers: int = 1, **more) -> SmilesRNN:
    config = SmilesRNNConfig(cell, num_layers, embedding_size=3, hidden_size=5, **more)
    return SmilesRNN(config, len(WORDS), WORDS)


def test_recurrence_has_the_right_gradient():
    shapes = [(4, 2, 9), (9, 3), (9,), (2, 3)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(gru_states, inputs)


def test_rows_that_have_ended_take_no_step_and_no_gradient():
    shapes = [(4, 3, 6), (6, 2), (6,), (3, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(*tensors):
        return gru_states(*tensors, [3, 2, 2, 1])

    assert torch.autograd.gradcheck(run, inputs)
    states, everything = run(*inputs), gru_states(*inputs)
    for row, length in enumerate((4, 3, 1)):
        torch.testing.assert_close(states[:length, row], everything[:length, row])
        assert not states[length:, row].any()
    states.sum().backward()
    assert not inputs[0].grad[3, 1:].any()
    assert not inputs[0].grad[1:3, 2].any()
    assert inputs[0].grad[0].all()


@pytest.mark.parametrize("num_open", [[3, 3, 3, 4], [3, 1, 2, 1], [3, 3]])
def test_rows_that_come_back_are_refused(num_open):
    with pytest.raises(ValueError, match="none larger than the one before"):
        gru_states(
            torch.zeros(4, 3, 6), torch.zeros(6, 2), torch.zeros(6), torch.zeros(3, 2), num_open
        )


@pytest.mark.parametrize(("cell", "num_layers"), [("gru", 1), ("gru", 2), ("lstm", 1)])
def test_lengths_change_nothing_before_them(cell, num_layers):
    model = tiny(cell, num_layers)
    ids_BT = torch.randint(len(WORDS), (3, 6))
    lengths_B = torch.tensor([6, 4, 1])
    kept_BT = torch.arange(6) < lengths_B[:, None]
    grads = []
    for lengths in (lengths_B, None):
        logits = model(ids_BT, lengths)[kept_BT]
        grads.append((logits, *torch.autograd.grad(logits.square().sum(), [*model.parameters()])))
    for short, full in zip(*grads, strict=True):
        torch.testing.assert_close(short, full, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="the longest first"):
        model(ids_BT, lengths_B.flip(0))


def test_one_step_by_hand():
    # All weights 0: r = z = 1/2, n = tanh(x_n) = tanh(1), h' = (n + h) / 2 with h = 0.2.
    inputs = torch.tensor([[[0.0, 0.0, 1.0]]])
    states = gru_states(inputs, torch.zeros(3, 1), torch.zeros(3), torch.tensor([[0.2]]))
    assert states.item() == pytest.approx((0.7615941559557649 + 0.2) / 2, abs=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_asked_for_autocast_rounds_only_products(num_layers):
    model = tiny("gru", num_layers, bfloat16_products=True)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    exact = model(ids_BT)
    with torch.autocast("cpu", torch.bfloat16):
        assert model._gru_states(ids_BT.t(), None).dtype == torch.float32
        rounded = model(ids_BT)
    assert not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    gradients = [
        torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))
        for logits in (rounded, exact)
    ]
    for near, right in zip(*gradients, strict=True):
        assert near.dtype == torch.float32
        assert (near - right).norm() < 0.05 * right.norm() + 1e-4


def steps_of(model: SmilesRNN, ids_BT: torch.Tensor) -> tuple[torch.Tensor, tuple]:
    state, logits = model.first_state(len(ids_BT)), []
    for t in range(ids_BT.shape[1]):
        one, state = model.step(ids_BT[:, t], state)
        logits.append(one)
    return torch.stack(logits, 1), state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("settings", "is_trained"),
    [
        ({"cell": "gru"}, True),
        ({"cell": "lstm"}, True),
        ({"cell": "gru", "bfloat16_products": True}, False),
    ],
    ids=["gru", "lstm", "gru that rounds in training"],
)
def test_autocast_changes_nothing(settings, is_trained, dtype):
    model = tiny(num_layers=2, **settings).train(is_trained)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    outside = model(ids_BT), *steps_of(model, ids_BT)
    with torch.autocast("cpu", dtype):
        inside = model(ids_BT), *steps_of(model, ids_BT)
    assert all(torch.equal(a, b) for a, b in zip(inside[:2], outside[:2], strict=True))
    assert {part.dtype for part in (*inside[:2], *inside[2])} == {torch.float32}
    gradients = [
        torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        for logits in (inside[0], outside[0])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_float16_rounds_no_product():
    model = tiny("gru", bfloat16_products=True)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    exact = model(ids_BT)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(model(ids_BT), exact)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bfloat16_weights_keep_float32_states(cell):
    model = tiny(cell, 2).to(torch.bfloat16).eval()
    ids_BT = torch.randint(len(WORDS), (4, 6))
    logits, state = steps_of(model, ids_BT)
    assert {part.dtype for part in (logits, *state)} == {torch.float32}
    torch.testing.assert_close(logits, model(ids_BT))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_cudnn_is_not_asked(cell, monkeypatch):
    asked = []
    lstm = torch.lstm
    monkeypatch.setattr(
        torch, "lstm", lambda *a: (asked.append(torch.backends.cudnn.enabled), lstm(*a))[1]
    )
    monkeypatch.setattr(torch.nn.RNNBase, "__call__", lambda *_: pytest.fail("called torch's RNN"))
    model = tiny(cell, 2, dropout=0.5)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    model(ids_BT).sum().backward()
    model.eval()(ids_BT)
    steps_of(model, ids_BT)
    assert torch.backends.cudnn.enabled
    assert not any(asked)
    assert bool(asked) == (cell == "lstm")


@pytest.mark.parametrize("num_layers", [1, 2])
def test_lstm_is_torchs(num_layers):
    model = tiny("lstm", num_layers)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    theirs, _ = model.rnn(model.embedding(ids_BT.t()))
    torch.testing.assert_close(model(ids_BT), model.output(theirs).transpose(0, 1))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gru_is_torchs(num_layers):
    model = tiny("gru", num_layers)
    ids_BT = torch.randint(len(WORDS), (4, 6))
    targets = torch.randint(len(WORDS), (24,))
    theirs, _ = model.rnn(model.embedding(ids_BT.t()))
    expected = model.output(theirs).transpose(0, 1)
    logits = model(ids_BT)
    torch.testing.assert_close(logits, expected)
    parameters = list(model.parameters())
    grads = [
        torch.autograd.grad(cross_entropy(each.reshape(24, -1), targets), parameters)
        for each in (logits, expected)
    ]
    for mine, torchs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, torchs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_step_by_step_is_all_at_once(cell):
    model = tiny(cell, 2)
    ids_BT = torch.randint(len(WORDS), (3, 5))
    torch.testing.assert_close(steps_of(model, ids_BT)[0], model(ids_BT))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_comes_back_from_disk(cell, tmp_path):
    model = tiny(cell, 2).eval()
    model.save_pretrained(tmp_path)
    loaded = load_smiles_rnn(tmp_path)
    ids_BT = torch.randint(len(WORDS), (2, 4))
    assert torch.equal(loaded(ids_BT), model(ids_BT))
    assert loaded.vocabulary == WORDS
    assert loaded.config == model.config
    assert is_smiles_rnn(tmp_path)
    assert not is_smiles_rnn(tmp_path / "nothing")
    assert {path.name for path in tmp_path.iterdir()} == {"smiles_rnn.json", "model.safetensors"}


def test_another_vocabulary_is_refused_with_the_difference():
    model = tiny()
    with pytest.raises(ValueError, match=r"only the model has O; only the data has N"):
        model.use_vocabulary([*WORDS[:4], "N", *WORDS[5:]])
    with pytest.raises(ValueError, match=r"token 3 is 'C' to the model, 'O' here"):
        model.use_vocabulary([*WORDS[:3], "O", "C", *WORDS[5:]])
    with pytest.raises(ValueError, match=r"the data has 2 tokens, the model 7"):
        SmilesRNN(SmilesRNNConfig(), 7).use_vocabulary(["a", "b"])


def test_what_is_no_prior_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no smiles_rnn\.json"):
        load_smiles_rnn(tmp_path)
    (tmp_path / "smiles_rnn.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="a model of type llama"):
        load_smiles_rnn(tmp_path)
    tiny().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "smiles_rnn.json").read_text()) | {"hidden_size": 4}
    (tmp_path / "smiles_rnn.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="do not fit its smiles_rnn"):
        load_smiles_rnn(tmp_path)
    with pytest.raises(ValueError, match="call use_vocabulary"):
        SmilesRNN(SmilesRNNConfig(), 7).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"cell": "elman"},
        {"num_layers": 0},
        {"hidden_size": 0},
        {"dropout": 1.0},
        {"cell": "lstm", "bfloat16_products": True},
    ],
)
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=list(setting)[-1]):
        SmilesRNNConfig(**setting)
