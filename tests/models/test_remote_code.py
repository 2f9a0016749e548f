"""Code beside the weights of a model is never run, whatever a terminal would answer."""

import ast
import builtins
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.adapter_folder import load_causal_lm
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.rewards.reward_model import RewardModel

FOLDERS = "models objectives metrics datamodules callbacks lit_modules studies benchmarks campaigns"
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Own(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): pass
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that wants to run `own.py`, and a user at a terminal who would say yes."""
    auto = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    auto |= dict.fromkeys(
        ("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "own.OwnModel"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": auto})
    )
    (tmp_path / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    monkeypatch.setattr(builtins, "input", lambda _="": "y")
    return tmp_path


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_causal_lm(str(folder)),
        lambda folder: load_memory_lm(folder),
        lambda folder: build_tokenizer(TokenizerConfig(path=str(folder)), list, "", folder),
        lambda folder: RewardModel(str(folder)).prepare(torch.device("cpu")),
    ],
    ids=["policy", "memory", "tokenizer", "reward"],
)
def test_code_beside_a_model_does_not_run(load, folder):
    with pytest.raises(ValueError, match=r"own|custom code|trust_remote_code"):
        load(folder)
    assert not (folder / "ran").exists()


def test_every_automatic_class_refuses_code():
    """A call that leaves it open asks at a terminal whether to run the code."""
    left_open = []
    for path in (p for name in (*FOLDERS.split(), "triptych") for p in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = getattr(node.func.value, "id", "")
            automatic = name.startswith("Auto") and node.func.attr == "from_pretrained"
            if automatic and "trust_remote_code" not in {word.arg for word in node.keywords}:
                left_open.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert left_open == []
