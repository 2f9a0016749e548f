"""Small artefacts of every kind, and how Triptych reads each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triptych.callbacks.run.atomic_checkpoint_io import AtomicCheckpointIO
from triptych.campaigns.damage import OF_BYTES, OF_JSON, OF_TENSORS, Fault
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.molecules.smiles_rnn import (
    SmilesRNN,
    SmilesRNNConfig,
    load_smiles_rnn,
)
from triptych.models.host.checked_folder import write_checksums
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.tensor_file import load_tensors, save_tensors
from triptych.objectives.rewards.molecules.oracle_ledger import OracleLedger

DESCRIPTION = {"objective": "a campaign"}


@dataclass(frozen=True)
class Artifact:
    """A file that Triptych writes and reads again.

    Attributes:
        file: Its path in the folder of its kind.
        faults: Ways to damage it.
        load: Reads the folder, and returns a digest of what it has read.
        may_change: Why another content is rightly taken; None where it is not.
    """

    file: str
    faults: dict[str, Fault]
    load: Callable[[Path], str]
    may_change: str | None = None


BY_HAND = "settings of an export without checksums may be changed by hand"
IGNORED = "a record of trackers that is damaged is not used, with a warning"
ARTIFACTS = {
    "export": Artifact("model.safetensors", OF_TENSORS, lambda p: _weights(load_memory_lm(p))),
    "export settings": Artifact("config.json", OF_JSON, lambda p: _weights(load_memory_lm(p))),
    "older export settings": Artifact(
        "config.json", OF_JSON, lambda p: _weights(load_memory_lm(p)), BY_HAND
    ),
    "prior": Artifact("model.safetensors", OF_TENSORS, lambda p: _weights(load_smiles_rnn(p))),
    "prior settings": Artifact("smiles_rnn.json", OF_JSON, lambda p: _weights(load_smiles_rnn(p))),
    "older prior": Artifact(
        "model.safetensors", OF_TENSORS, lambda p: _weights(load_smiles_rnn(p))
    ),
    "older prior settings": Artifact(
        "smiles_rnn.json", OF_JSON, lambda p: _weights(load_smiles_rnn(p)), BY_HAND
    ),
    "ledger entry": Artifact("entry.safetensors", OF_TENSORS, lambda p: _tensors(p)),
    "checkpoint": Artifact("last.ckpt", OF_BYTES, lambda p: _checkpoint(p)),
    "oracle ledger": Artifact("oracle.sqlite", OF_BYTES, lambda p: _calls(p)),
    "tracking record": Artifact("tracking.json", OF_JSON, lambda p: _record(p), IGNORED),
}


def write_artifacts(folder: Path) -> None:
    """Write one folder for each of `ARTIFACTS`."""
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=32)
    memory = MemoryConfig(layers=[1], num_keys=4, num_heads=1, top_k=2, key_dim=8)
    model = build_memory_lm(base, memory, vocab_size=20)
    prior = SmilesRNN(SmilesRNNConfig(hidden_size=8, num_layers=1), 5, list("^$CNO"))
    for name in ARTIFACTS:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if "export" in name:
            model.save_pretrained(place)
        elif "prior" in name:
            prior.save_pretrained(place)
        if name.startswith(("export", "prior")):
            write_checksums(place)
    facts = {"format": "a campaign", "facts": ["author/The Little Prince", "capital/Peru"]}
    tensors = {"rows": torch.arange(40), "values": torch.randn(40, 8)}
    save_tensors(folder / "ledger entry" / "entry.safetensors", tensors, facts)
    state = {"state_dict": {"weight": torch.randn(50, 50)}, "global_step": 3}
    AtomicCheckpointIO().save_checkpoint(state, folder / "checkpoint" / "last.ckpt")
    ledger = OracleLedger(folder / "oracle ledger" / "oracle.sqlite", DESCRIPTION)
    smiles = ["CCO", "CCN", "CCC"]
    ledger.reserve(smiles, 10, 0)
    for one in smiles:
        ledger.record(one, 0.5, {}, None)
    record = {"key": "a" * 32, "experiment": "x", "run_name": "y", "start_time_ms": 1}
    text = json.dumps(record | {"status": "FINISHED", "end_time_ms": 2, "tags": {}, "params": {}})
    (folder / "tracking record" / "tracking.json").write_text(text)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _weights(model: torch.nn.Module) -> str:
    return _of_tensors(model.state_dict())


def _of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    return _digest(
        *(
            part
            for name, tensor in sorted(tensors.items())
            for part in (f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(), _bytes(tensor))
        )
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _tensors(folder: Path) -> str:
    tensors, description = load_tensors(folder / "entry.safetensors")
    return _digest(_of_tensors(tensors).encode(), json.dumps(description).encode())


def _checkpoint(folder: Path) -> str:
    state: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")
    return _digest(_of_tensors(state["state_dict"]).encode(), str(state["global_step"]).encode())


def _calls(folder: Path) -> str:
    ledger = OracleLedger(folder / "oracle.sqlite", DESCRIPTION)
    return _digest(repr(ledger.calls()).encode())


def _record(folder: Path) -> str:
    from triptych.callbacks.tracking.run_record import RunRecord

    content = RunRecord(folder).read()
    return _digest(json.dumps({k: v for k, v in content.items() if k != "key"}).encode())
