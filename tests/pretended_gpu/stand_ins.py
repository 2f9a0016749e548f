"""Tiny models and programs in place of those that configurations take from elsewhere."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch import Tensor
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.datamodules.remember.text.text_corpus import TextCorpus
from triptych.objectives.commune import jacobian
from triptych.objectives.rewards.molecules.docking import VinaDocking

# The markers that Qwen's template has; the wording is ours.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


def save_all(folder: Path) -> None:
    """Write the files that `tiny_runs` names into a folder."""
    torch.manual_seed(0)
    tokenizer = TextCorpus(tokenizer=TokenizerConfig(vocab_size=300)).tokenizer
    tokenizer.chat_template = TEMPLATE
    vocab = {"vocab_size": len(tokenizer) + 4, "pad_token_id": tokenizer.pad_token_id}
    qwen3 = {**SIZES, **vocab, "head_dim": 8}
    models = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, **vocab, num_hidden_layers=2)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**qwen3, num_hidden_layers=3)),
        "deep_qwen3": Qwen3ForCausalLM(Qwen3Config(**qwen3, num_hidden_layers=22)),
        "reward": Qwen3ForSequenceClassification(
            Qwen3Config(**qwen3, num_hidden_layers=2, num_labels=1)
        ),
    }
    for name, model in models.items():
        model.bfloat16().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tiny_rnn().save_pretrained(folder / "prior")
    tiny_tokenizer().save_pretrained(folder / "prior")
    (folder / "receptor.pdbqt").write_text("stands for a protein\n")
    (folder / "ligand.pdb").write_text(Chem.MolToPDBBlock(_tiny_ligand()))
    (folder / "building_blocks.smi").write_text("CC(=O)O\nCN\n")
    row = {"problem": "What is %d + 1?", "solution": "\\boxed{%d}", "level": 3}
    rows = (json.dumps(row) % (number, number + 1) for number in range(12))
    (folder / "math.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "wild.jsonl").write_text("".join(_conversation(number) for number in range(24)))


@contextmanager
def stand_ins_used() -> Iterator[None]:
    """Replace what cannot run here.

    - Each molecule gets the same docking score, also where the programs are not installed.
    - Agents of two steps say nothing that they could agree on: any reply counts as an answer.
    - `torch.func` knows no tensors of the pretended device: plain loops and `torch.autograd` do
      its work.
    """
    find_spec = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "importlib.util.find_spec",
            lambda name, *more: find_spec("json" if name in ("vina", "meeko") else name, *more),
        )
        patch.setattr(VinaDocking, "value", lambda self, molecule, smiles: -8.0)
        patch.setattr(jacobian, "vmap", _vmap)
        patch.setattr(jacobian, "jvp", torch.autograd.functional.jvp)
        patch.setattr(PooledEvidence, "read_answer", lambda task, reply: reply or "nothing")
        yield


def _vmap(function: Callable[..., Any], chunk_size: int | None = None) -> Callable[..., Tensor]:
    def one_by_one(*batches: Tensor) -> Tensor:
        return torch.stack([function(*rows) for rows in zip(*batches, strict=True)])

    return one_by_one


def _conversation(number: int) -> str:
    turns = [
        {"role": "user", "content": f"Tell me {number} things about the sea."},
        {"role": "assistant", "content": "It is wet."},
    ]
    row = {"conversation": turns, "language": "English", "toxic": False, "redacted": False}
    return json.dumps(row) + "\n"


def _tiny_ligand() -> Chem.Mol:
    molecule = Chem.MolFromSmiles("OC")
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    return molecule
