"""A recurrent language model of SMILES tokens, GRU or LSTM, like REINVENT's priors.

folder/smiles_rnn.json      settings and vocabulary
folder/model.safetensors    weights; loading a folder runs no code from it

All is computed in float32 (float64 for such weights) on every device and under every precision of
the trainer: autocast is off. So sampling and scoring agree wherever they run, and a search ends in
bf16-mixed as it does in float32. `bfloat16_products` makes one exception, in training.
"""

# Shapes: B rows, T positions, L layers, E embedding width, H state width, V vocabulary

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from triptych.models.diversify.molecules.token_recurrence import gru_states, gru_step
from triptych.models.host.checked_folder import (
    check_folder,
    named_in_errors,
    read_settings,
    refresh_checksums,
)
from triptych.models.tensor_file import load_tensors, save_tensors

MODEL_TYPE = "smiles_rnn"
# (hidden,) or (hidden, cell), each (L, B, H).
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class SmilesRNNConfig:
    """A recurrent network over tokens.

    Args:
        cell: `gru`, or `lstm`.
        num_layers: L.
        embedding_size: E.
        hidden_size: H.
        dropout: Dropout rate between layers and before the output.
        bfloat16_products: Let matrix products of a GRU follow autocast to bfloat16 in training mode
            (`trainer.precision: bf16-mixed`), which takes half the time on processors with such
            instructions. States and sums stay float32, and eval mode rounds nothing.

    Raises:
        ValueError: if a number is out of range.
    """

    cell: Literal["gru", "lstm"] = "gru"
    num_layers: int = 1
    embedding_size: int = 128
    hidden_size: int = 256
    dropout: float = 0.0
    bfloat16_products: bool = False

    def __post_init__(self) -> None:
        if self.cell not in ("gru", "lstm"):
            raise ValueError(f"rnn.cell is {self.cell!r}: choose gru or lstm")
        for name in ("num_layers", "embedding_size", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"rnn.{name} is {getattr(self, name)}: set it to at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"rnn.dropout is {self.dropout}: set it to at least 0 and below 1")
        if self.bfloat16_products and self.cell != "gru":
            raise ValueError("rnn.bfloat16_products is for rnn.cell=gru: set it to false")


class SmilesRNN(nn.Module):
    """Embedding, recurrent layers, output layer.

    Args:
        config: The network.
        vocab_size: V.
        vocabulary: The tokens in the order of their ids; None: set later by `use_vocabulary`.

    Raises:
        ValueError: if `vocab_size` is below 2, or the vocabulary has another size.
    """

    def __init__(
        self, config: SmilesRNNConfig, vocab_size: int, vocabulary: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}: a language has at least 2 tokens")
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        kind = nn.GRU if config.cell == "gru" else nn.LSTM
        self.rnn = kind(config.embedding_size, config.hidden_size, config.num_layers)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.vocabulary: list[str] | None = None
        if vocabulary is not None:
            self.use_vocabulary(vocabulary)

    def use_vocabulary(self, vocabulary: Sequence[str]) -> None:
        """Set the tokens of the ids, or check them against the known ones.

        Raises:
            ValueError: if the model was trained with other tokens, or their number differs.
        """
        given = list(vocabulary)
        if self.vocabulary is not None:
            refuse_other_vocabulary(self.vocabulary, given)
        elif len(given) != self.vocab_size:
            raise ValueError(f"the data has {len(given)} tokens, the model {self.vocab_size}")
        self.vocabulary = given

    # -- all positions at once --------------------------------------------------------------------

    def forward(self, ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Compute the logits of the token after each position.

        Args:
            ids_BT: int64, right-padded.
            lengths_B: Number of tokens of each row, descending. Logits after these positions are
                undefined, and a GRU on a CPU does not compute them. None: all positions count.

        Returns:
            Logits (B, T, V).

        Raises:
            ValueError: on a CPU, if a row is longer than the one before.
        """
        with self._products():
            states_TBH = self._states(ids_BT.t(), lengths_B)
            return self._logits(self.dropout(states_TBH)).transpose(0, 1)

    def _products(self) -> torch.autocast:
        """Return a context without autocast, except for `bfloat16_products` in training.

        float16 has too narrow a range for gradients of a mean without a scaled loss. In eval mode
        rounded products would make a token's probability depend on whether the caller is inside
        autocast and on how many rows are read at once.
        """
        kind = self.output.weight.device.type
        keeps = (
            self.training
            and self.config.bfloat16_products
            and torch.is_autocast_enabled(kind)
            and torch.get_autocast_dtype(kind) == torch.bfloat16
        )
        return torch.autocast(kind, torch.bfloat16, enabled=keeps)

    def _logits(self, states: Tensor) -> Tensor:
        return linear(states, _wide(self.output.weight), _wide(self.output.bias))

    def _states(self, ids_TB: Tensor, lengths_B: Tensor | None) -> Tensor:
        num_open_T = _num_open(ids_TB, lengths_B)
        if self.config.cell == "gru":
            return self._gru_states(ids_TB, num_open_T)
        inputs_TBE = embedding(ids_TB, _wide(self.embedding.weight))
        return self._lstm(inputs_TBE, self.first_state(ids_TB.shape[1]))[0]

    def _lstm(self, inputs_TBE: Tensor, state: State) -> tuple[Tensor, State]:
        """Run torch's LSTM; its own module would take cuDNN's.

        cuDNN has no backward pass in eval mode, in which policies stay, and autocast turns it to
        float16. torch's own kernels have neither fault.
        """
        layers = [self._weights(layer) for layer in range(self.config.num_layers)]
        weights = [w for w_ih, b_ih, w_hh, b_hh in layers for w in (w_ih, w_hh, b_ih, b_hh)]
        rate = self.dropout.p if self.training else 0.0
        with torch.backends.cudnn.flags(enabled=False):
            states_TBH, hidden, cell = torch.lstm(
                inputs_TBE,
                state,
                weights,
                has_biases=True,
                num_layers=self.config.num_layers,
                dropout=rate,
                train=self.training,
                bidirectional=False,
                batch_first=False,
            )
        return states_TBH, (hidden, cell)

    def _gru_states(self, ids_TB: Tensor, num_open_T: list[int] | None) -> Tensor:
        first_BH = self.first_state(ids_TB.shape[1])[0][0]
        inputs_TBG = embedding(ids_TB, self._table())
        states_TBH = gru_states(inputs_TBG, *self._weights(0)[2:], first_BH, num_open_T)
        for layer in range(1, self.config.num_layers):
            weight_ih, bias_ih, weight_hh, bias_hh = self._weights(layer)
            inputs_TBG = self.dropout(states_TBH) @ weight_ih.t() + bias_ih
            states_TBH = gru_states(inputs_TBG, weight_hh, bias_hh, first_BH, num_open_T)
        return states_TBH

    def _table(self) -> Tensor:
        """Compute each token's input to the gates of the first layer, (V, G)."""
        weight_ih, bias_ih = self._weights(0)[:2]
        embeddings = _wide(self.embedding.weight)
        return torch.addmm(bias_ih, embeddings, weight_ih.t()).to(embeddings.dtype)

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias of the input, then weight and bias of the state."""
        names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        weight_ih, bias_ih, weight_hh, bias_hh = (
            _wide(getattr(self.rnn, f"{name}_l{layer}")) for name in names
        )
        return weight_ih, bias_ih, weight_hh, bias_hh

    # -- token by token ---------------------------------------------------------------------------

    def first_state(self, num_rows: int) -> State:
        """Return the state before any token."""
        config, weight = self.config, self.embedding.weight
        zeros = weight.new_zeros(
            *(config.num_layers, num_rows, config.hidden_size), dtype=_wide_dtype(weight)
        )
        return (zeros,) if config.cell == "gru" else (zeros, zeros.clone())

    def step(self, ids_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token of each row.

        Returns:
            Logits of the next token, (B, V), and the new state.
        """
        with torch.autocast(ids_B.device.type, enabled=False):
            if self.config.cell == "gru":
                made = self._gru_step(ids_B, state[0])
                return self._logits(made[-1]), (torch.stack(made),)
            inputs_1BE = embedding(ids_B, _wide(self.embedding.weight))[None]
            output_1BH, state = self._lstm(inputs_1BE, state)
            return self._logits(output_1BH[0]), state

    def _gru_step(self, ids_B: Tensor, previous_LBH: Tensor) -> list[Tensor]:
        """Return the next state of each layer, (B, H)."""
        inputs_BG = embedding(ids_B, self._table())
        made = [gru_step(inputs_BG, *self._weights(0)[2:], previous_LBH[0])]
        for layer in range(1, self.config.num_layers):
            weight_ih, bias_ih, weight_hh, bias_hh = self._weights(layer)
            inputs_BG = torch.addmm(bias_ih, made[-1], weight_ih.t())
            made.append(gru_step(inputs_BG, weight_hh, bias_hh, previous_LBH[layer]))
        return made

    # -- on disk ----------------------------------------------------------------------------------

    def save_pretrained(
        self, folder: str | Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write settings, vocabulary and weights.

        Raises:
            ValueError: if the vocabulary is not set.
        """
        if self.vocabulary is None:
            raise ValueError("the model has no vocabulary yet: call use_vocabulary before saving")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state_dict is None else state_dict
        content: dict[str, Any] = {"model_type": MODEL_TYPE, **asdict(self.config)}
        content["vocabulary"] = self.vocabulary
        save_tensors(path / "model.safetensors", dict(weights), {"model_type": MODEL_TYPE})
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (path / "smiles_rnn.json").write_text(text + "\n")
        refresh_checksums(path)


def _num_open(ids_TB: Tensor, lengths_B: Tensor | None) -> list[int] | None:
    """Return the number of rows that take each step; None on accelerators, which would wait.

    Raises:
        ValueError: if a row is longer than the one before.
    """
    if lengths_B is None or ids_TB.device.type != "cpu":
        return None
    if (lengths_B.diff() > 0).any():
        raise ValueError(f"lengths_B is {lengths_B.tolist()}: order rows, the longest first")
    positions_T1 = torch.arange(len(ids_TB))[:, None]
    counts: list[int] = (lengths_B > positions_T1).sum(1).tolist()
    return counts


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(_wide_dtype(tensor))


def refuse_other_vocabulary(own: Sequence[str], given: Sequence[str]) -> None:
    """Check that a model and the data have the same tokens in the same order.

    Raises:
        ValueError: if they differ; the message gives the difference.
    """
    if list(own) == list(given):
        return
    only_own, only_given = sorted({*own} - {*given}), sorted({*given} - {*own})
    if only_own or only_given:
        difference = (
            f"only the model has {' '.join(only_own) or 'none'}; only the data has "
            f"{' '.join(only_given) or 'none'}"
        )
    else:
        place = next(i for i, (a, b) in enumerate(zip(own, given, strict=True)) if a != b)
        difference = f"token {place} is {own[place]!r} to the model, {given[place]!r} here"
    raise ValueError(
        f"the model was made for another vocabulary ({difference}): set "
        "data.init_args.smiles.tokenizer to the model's folder and filter out molecules that need "
        "other tokens, or train a prior on these data"
    )


def is_smiles_rnn(folder: str | Path) -> bool:
    """Return whether a folder was written by `SmilesRNN.save_pretrained`."""
    path = Path(folder) / "smiles_rnn.json"
    return path.is_file() and read_settings(path).get("model_type") == MODEL_TYPE


def load_smiles_rnn(folder: str | Path) -> SmilesRNN:
    """Load a folder of `SmilesRNN.save_pretrained`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds another model, or its weights do not fit its settings.
    """
    path = Path(folder)
    if not (path / "smiles_rnn.json").is_file():
        raise FileNotFoundError(f"{path} has no smiles_rnn.json: give the folder export of a prior")
    check_folder(path)
    content = read_settings(path / "smiles_rnn.json")
    found = content.pop("model_type", None)
    if found != MODEL_TYPE:
        raise ValueError(
            f"{path} holds a model of type {found}, not {MODEL_TYPE}: give the folder of a prior "
            "that triptych.lit_modules.diversify.molecules.molecule_pretraining."
            "MoleculePretraining exported"
        )
    vocabulary = read_settings(path / "smiles_rnn.json", vocabulary=list)["vocabulary"]
    del content["vocabulary"]
    with named_in_errors(path / "smiles_rnn.json"):
        model = SmilesRNN(SmilesRNNConfig(**content), len(vocabulary), vocabulary)
    tensors, _ = load_tensors(path / "model.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit its smiles_rnn.json ({error})"
        ) from error
    return model.eval()
