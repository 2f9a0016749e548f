"""The paper's large settings take two steps on tiny stand-ins of the same classes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from tests.conftest import ROOT
from tests.interrupted.search_runs import calls
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.cli import main
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.text.text_corpus import TextCorpus
from triptych.metrics.display.metric_names import has_name
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.rewards.molecules.docking import VinaDocking
from triptych.objectives.rewards.molecules.oracle_ledger import Call

CONFIGS = ROOT / "configs"
# The markers that Qwen's template has; the wording is ours.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Tiny models of the papers' classes, with a chat template."""
    torch.manual_seed(0)
    tokenizer = TextCorpus(tokenizer=TokenizerConfig(vocab_size=300)).tokenizer
    tokenizer.chat_template = TEMPLATE
    vocab = {"vocab_size": len(tokenizer) + 4, "pad_token_id": tokenizer.pad_token_id}
    made = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, **vocab)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, **vocab, head_dim=8)),
        "reward": Qwen3ForSequenceClassification(
            Qwen3Config(**SIZES, **vocab, head_dim=8, num_labels=1)
        ),
    }
    folders = {}
    for name, model in made.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.bfloat16().save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def two_steps(name: str, *words: object) -> Path:
    run = main(
        [
            *("fit", "--config", str(CONFIGS / "diversify" / name)),
            *("--config", str(CONFIGS / "hardware" / "cpu.yaml")),
            *("--trainer.fast_dev_run", "2"),
            *map(str, words),
        ]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert not [key for key in summary["metrics"] if not has_name(key)], "give them a name"
    return run


@pytest.mark.slow
def test_one_or_two_of_qwen2(workdir, folders):
    run = two_steps(
        "one_or_two_qwen2.5_3b.yaml",
        *("--model.init_args.policy.base.pretrained", folders["qwen2"]),
        *("--model.init_args.policy.max_new_tokens", 6),
        *("--model.init_args.policy.lora.rank", 2),
        *("--model.init_args.num_samples", 2, "--model.init_args.eval_samples", 2),
        *("--data.init_args.batch_size", 2),
    )
    # Adapters are merged for the export: a plain model of the same class.
    assert isinstance(load_memory_lm(run / "export"), Qwen2ForCausalLM)


@pytest.mark.slow
def test_creative_qa_of_qwen3(workdir, folders, tmp_path):
    rows = [
        {
            "conversation": [
                {"role": "user", "content": f"Tell me {n} things about the sea."},
                {"role": "assistant", "content": "It is wet."},
            ],
            "language": language,
            "toxic": False,
            "redacted": False,
        }
        for n, language in enumerate(["English"] * 24 + ["French"])
    ]
    path = tmp_path / "wild.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The embedding metric needs a model of its own, and the classifier one of the hub.
    metrics = [
        {
            "class_path": "triptych.metrics.diversify.novelty.NoveltyBench",
            "init_args": {"num_samples": 2},
        },
        {"class_path": "triptych.metrics.diversify.text_diversity.ExpectationAdjustedDistinct"},
    ]
    run = two_steps(
        "creative_qa_qwen3.yaml",
        *("--data.init_args.prompts.source.path", path),
        *("--data.init_args.prompts.num_prompts", 8),
        *("--data.init_args.prompts.held_out_share", 0.4),
        *("--data.init_args.batch_size", 2),
        *("--model.init_args.policy.base.pretrained", folders["qwen3"]),
        *("--model.init_args.policy.max_new_tokens", 6),
        *("--model.init_args.reward.init_args.model", folders["reward"]),
        *("--model.init_args.num_samples", 2, "--model.init_args.eval_samples", 2),
        *("--model.init_args.metrics", json.dumps(metrics)),
    )
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert {"val/held_out/distinct", "val/held_out/utility", "val/held_out/ead"} <= set(metrics)
    assert isinstance(load_memory_lm(run / "export"), Qwen3ForCausalLM)


@pytest.mark.slow
def test_maths_of_qwen2(workdir, folders, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"So #### {n + 1}"} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = two_steps(
        "maths_qwen2.5_1.5b.yaml",
        *("--data.init_args.prompts.source", json.dumps({"path": str(path)})),
        *("--data.init_args.prompts.held_out_share", 0.4),
        *("--data.init_args.batch_size", 2),
        *("--model.init_args.policy.base.pretrained", folders["qwen2"]),
        *("--model.init_args.policy.max_new_tokens", 6),
        *("--model.init_args.policy.lora.rank", 2),
        *("--model.init_args.num_samples", 2, "--model.init_args.eval_samples", 4),
    )
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert {"val/held_out/pass_at_1", "val/held_out/pass_at_4"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synth", "synth_all_amide"])
def test_the_tasks_of_chemistry(workdir, monkeypatch, name):
    """Docking gives a constant, also where its programs are not installed; the rest is real."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda wanted, *more: find_spec("json" if wanted in ("vina", "meeko") else wanted, *more),
    )
    monkeypatch.setattr(VinaDocking, "value", lambda self, molecule, smiles: -8.0)
    monkeypatch.setattr(VinaDocking, "prepare", lambda self: None)
    tiny_rnn().save_pretrained("prior")
    tiny_tokenizer().save_pretrained("prior")
    Path("receptor.pdbqt").write_text("stands for a protein\n")
    Path("ligand.pdb").write_text(Chem.MolToPDBBlock(tiny_ligand()))
    Path("building_blocks.smi").write_text("CC(=O)O\nCN\n")
    reward = "--model.init_args.reward.init_args"
    run = two_steps(
        f"{name}.yaml",
        *("--model.init_args.init_from", "prior", "--model.init_args.max_new_tokens", 8),
        *("--model.init_args.num_samples", 8, f"{reward}.num_workers", 0),
    )
    found = [dict(zip(Call.__annotations__, row, strict=True)) for row in calls(run)]
    assert found
    for call in found:
        parts = json.loads(call["components"])
        assert call["error"] is None
        # The planner finds no route, and is asked before the docking program is.
        docked = name == "synth"
        assert parts.get("vina_docking") == (pytest.approx(0.5) if docked else None)
        assert (call["score"] > 0) == docked
        assert ("synthetic_accessibility" in parts) == docked
        assert parts.get("retrosynthesis") == (None if docked else 0.0)


def tiny_ligand() -> Chem.Mol:
    molecule = Chem.MolFromSmiles("OC")
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    return molecule
