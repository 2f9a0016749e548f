"""A slot index in a user's file: settings, training, export, and trust in loading."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.cli import main
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm

OWN = """
import torch
from torch import nn

from triptych.models.remember.index.slot_index import SlotIndex


class Scaled(SlotIndex):
    def __init__(self, num_slots, num_heads, query_dim, scale, centre=False):
        super().__init__(num_slots, num_heads, query_dim)
        self.scale, self.centre = scale, centre
        self.keys = nn.Parameter(torch.randn(num_heads, num_slots, query_dim))

    def search(self, query_BHD, num_kept):
        return torch.einsum("bhd,hsd->bhs", query_BHD, self.keys).topk(num_kept).indices

    def score(self, query_BHD, ids_BHK):
        keys_BHKD = self.keys[torch.arange(self.num_heads)[:, None], ids_BHK]
        return self.scale * torch.einsum("bhd,bhkd->bhk", query_BHD, keys_BHKD)
"""
VOCABULARY = 31
BASE = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=32)
MEMORY = "model.init_args.memory"
OWN_CLASS = "own_indices.scaled.Scaled"


@pytest.fixture
def own_index(tmp_path, monkeypatch):
    """A package on the path that nothing has imported yet."""
    folder = tmp_path / "path" / "own_indices"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "scaled.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delenv("TRIPTYCH_TRUSTED_MODULES", raising=False)
    yield forget
    forget()


def forget():
    for name in ("own_indices", "own_indices.scaled"):
        sys.modules.pop(name, None)


def memory(**settings) -> MemoryConfig:
    sizes = {"layers": [1], "num_keys": 6, "num_heads": 2, "top_k": 3, "index": OWN_CLASS}
    return MemoryConfig(**(sizes | settings))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(9).view(1, 9), use_cache=False).logits


@pytest.fixture
def saved(own_index, tmp_path) -> tuple[Path, torch.Tensor]:
    """The folder of a model that learned one step with the user's index, and its logits."""
    model = build_memory_lm(BASE, memory(index_args={"scale": 0.5}), VOCABULARY)
    (layer,) = memory_layers(model)
    assert (layer.index.scale, layer.index.centre, layer.index.num_slots) == (0.5, False, 36)
    before = layer.index.keys.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.randint(VOCABULARY, (4, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(layer.index.keys, before)
    model.save_pretrained(tmp_path / "saved")
    own_index()
    return tmp_path / "saved", logits(model)


def test_loading_runs_no_code_of_a_module_that_is_not_trusted(saved, monkeypatch):
    folder, _ = saved
    expected = (
        r"index own_indices\.scaled\.Scaled is not part of Triptych.*TRIPTYCH_TRUSTED_MODULES="
        r"own_indices\.scaled .*trusted_modules=\['own_indices\.scaled'\]"
    )
    for others in (
        "",
        "own, own_indices.other,own_indices.scaled_2",
        "own_indices.scaled.Scaled",
    ):
        monkeypatch.setenv("TRIPTYCH_TRUSTED_MODULES", others)
        with pytest.raises(ValueError, match=expected):
            load_memory_lm(folder, trusted_modules=["other"])
    assert "own_indices" not in sys.modules


@pytest.mark.parametrize("trusted", ["own_indices.scaled", "own_indices"])
def test_a_trusted_module_is_loaded(saved, monkeypatch, trusted):
    folder, expected = saved
    loaded = load_memory_lm(folder, trusted_modules=[trusted])
    assert torch.equal(logits(loaded), expected)
    (layer,) = memory_layers(loaded)
    assert layer.index.scale == 0.5
    monkeypatch.setenv("TRIPTYCH_TRUSTED_MODULES", f"other, {trusted}")
    assert torch.equal(logits(load_memory_lm(folder)), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scal": 1}, "do not fit Scaled: .*'scal.*Its settings: scale, centre"),
        ({}, "missing a required (keyword-only )?argument: 'scale'"),
        ({"scale": 1, "num_heads": 3}, "multiple values for keyword argument 'num_heads'"),
    ],
)
def test_settings_that_do_not_fit_the_constructor(own_index, settings, message):
    with pytest.raises(ValueError, match=message):
        build_memory_lm(BASE, memory(index_args=settings), VOCABULARY)


def test_product_keys_have_no_settings():
    config = MemoryConfig(num_keys=6, top_k=3, index_args={"num_active": 3})
    with pytest.raises(ValueError, match=r"do not fit ProductKeyIndex.*'num_active'.*: none"):
        build_memory_lm(BASE, config, VOCABULARY)


def test_an_index_without_qk_norm_refuses_it(own_index):
    config = memory(index_args={"scale": 1}, qk_norm=True)
    with pytest.raises(ValueError, match=r"memory\.qk_norm is set, but Scaled has no such option"):
        build_memory_lm(BASE, config, VOCABULARY)


def test_settings_come_back_as_they_were_built(own_index, tmp_path):
    model = build_memory_lm(BASE, memory(index_args={"scale": 1, "centre": (1, 2)}), VOCABULARY)
    model.save_pretrained(tmp_path / "saved")
    again = load_memory_lm(tmp_path / "saved", trusted_modules=["own_indices"])
    assert [memory_layers(m)[0].index.centre for m in (model, again)] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    "former",
    ["models.product_keys.ProductKeyIndex", "models.remember.index.product_keys.ProductKeyIndex"],
)
def test_former_class_paths_are_triptychs_own(tmp_path, former):
    folder = export_tiny_model(tmp_path / "export")
    expected = logits(load_memory_lm(folder))
    config = json.loads((folder / "config.json").read_text())
    config["memory"] |= {"index": former, "faiss": None}
    del config["memory"]["index_args"]  # of a version without it
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(load_memory_lm(folder)), expected)


def test_a_name_that_only_looks_like_triptychs_is_refused(tmp_path):
    folder = export_tiny_model(tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    for foreign in ("os.system", "triptych.models_of_mine.Index", "triptych.cli.main", "Index"):
        config["memory"]["index"] = foreign
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="is not part of Triptych"):
            load_memory_lm(folder)


def test_a_run_trains_and_exports_it(own_index, workdir):
    (workdir / "own.yaml").write_text(
        f"""
        model:
          class_path: triptych.lit_modules.remember.memory_pretraining.MemoryPretraining
          init_args:
            base: {{hidden_size: 16, num_layers: 2, num_heads: 2}}
            memory:
              num_keys: 6
              num_heads: 2
              top_k: 3
              index: {OWN_CLASS}
              index_args: {{scale: 0.25}}
        data:
          class_path: triptych.datamodules.remember.facts.facts.Facts
          init_args:
            facts: {{num_facts: 10, validation_facts: 4}}
            tokenizer: {{vocab_size: 300}}
        trainer: {{accelerator: cpu, max_steps: 1, limit_val_batches: 1}}
        tracking: {{uri: null}}
        """
    )
    run = main(
        ["fit", "--config", "own.yaml", "--model.init_args.memory.index_args.centre", "true"]
    )
    (layer,) = memory_layers(load_memory_lm(run / "export", trusted_modules=["own_indices"]))
    assert (layer.index.scale, layer.index.centre) == (0.25, True)
