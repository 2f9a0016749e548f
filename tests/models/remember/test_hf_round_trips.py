"""Memory models of four transformers families: insert, save, load, generate, pack, copy."""

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from triptych import ROOT
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import FFNWithMemory
from triptych.models.remember.memory_lm import build_memory_lm, insert_memory_layers, load_memory_lm
from triptych.models.segment_mask import segment_attention_mask

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]
VOCABULARY = 61
FAISS = "triptych.models.remember.index.faiss_index.FaissSlotIndex"


def base_config(family: str, **settings) -> BaseLMConfig:
    grouped = {} if family == "gpt2" else {"num_kv_heads": 2}
    sizes = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64}
    return BaseLMConfig(family=family, **(sizes | grouped | settings))


def memory_config(**settings) -> MemoryConfig:
    sizes = {"layers": [0, 2], "num_keys": 8, "num_heads": 2, "top_k": 4, "value_dim": 20}
    return MemoryConfig(**(sizes | settings))


def build(family: str, **settings) -> PreTrainedModel:
    model = build_memory_lm(base_config(family), memory_config(**settings), VOCABULARY).eval()
    open_gates(model)
    return model


def open_gates(model: PreTrainedModel) -> None:
    """Open the gates of memories beside FFNs."""
    for module in model.modules():
        if isinstance(module, FFNWithMemory):
            module.memory_gate.data.fill_(0.7)


def tokens(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, **inputs) -> Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits


def greedy(model: PreTrainedModel, ids: Tensor, **settings) -> list[list[int]]:
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | settings
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings).tolist()


# -- insertion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share_values", [True, False])
@pytest.mark.parametrize("relevance_gate", [True, False])
def test_logits_do_not_change_by_a_bit_at_insertion_beside(family, share_values, relevance_gate):
    model = build_base_lm(base_config(family), VOCABULARY).eval()
    ids = tokens()
    before, words = logits(model, ids), greedy(model, ids)
    memory = memory_config(
        placement="beside", share_values=share_values, relevance_gate=relevance_gate
    )
    same = insert_memory_layers(model, memory)
    assert same is model
    assert len(memory_layers(model)) == 2
    assert not any(layer.training for layer in memory_layers(model))
    assert torch.equal(logits(model, ids), before)
    assert greedy(model, ids) == words
    open_gates(model)
    assert not torch.allclose(logits(model, ids), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_model_is_its_familys_class_and_trains(family):
    base_class = type(build_base_lm(base_config(family), VOCABULARY))
    model = build(family).train()
    assert isinstance(model, base_class)
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


# -- save and load --------------------------------------------------------------------------------

VARIANTS = [
    pytest.param({"placement": placement, "share_values": share}, id=f"{placement}-{tables}")
    for placement, (share, tables) in itertools.product(
        ["replace", "beside"], [(True, "shared"), (False, "own")]
    )
] + [
    pytest.param({"placement": "replace", "dense_twin": True}, id="replace-twin"),
    pytest.param({"placement": "beside", "dense_twin": True}, id="beside-twin"),
    pytest.param({"value_dim": 37, "qk_norm": True}, id="odd-width-qk-norm"),
    pytest.param({"value_dim": None, "gated": False}, id="ungated"),
    pytest.param({"gated": False}, id="ungated-projected"),
    pytest.param({"value_gradient": "selected_rows"}, id="selected-rows"),
    pytest.param({"value_dtype": "bfloat16"}, id="bfloat16-table"),
    pytest.param({"placement": "beside", "relevance_gate": True}, id="relevance-gate"),
    pytest.param({"index": FAISS, "qk_norm": True}, id="faiss-exact"),
    pytest.param(
        {"index": FAISS, "index_args": {"exact_below": 0, "num_active": 50}}, id="faiss-codes"
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", VARIANTS)
def test_save_and_load_change_no_bit(family, settings, tmp_path):
    model = build(family, **settings)
    ids = tokens()
    model.save_pretrained(tmp_path)
    loaded = load_memory_lm(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert greedy(loaded, ids) == greedy(model, ids)
    assert MemoryConfig(**loaded.config.memory) == MemoryConfig(**model.config.memory)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype, name
        assert torch.equal(theirs[name], tensor), name
    tables = zip(value_tables(model), value_tables(loaded), strict=True)
    assert all(one.gradient == two.gradient for one, two in tables)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_memory_lm(tmp_path / "again"), ids), logits(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"placement": "beside", "relevance_gate": True}, {"index": FAISS}],
    ids=["replace", "relevance-gate", "faiss"],
)
def test_a_whole_bfloat16_model(family, settings, tmp_path):
    model = build(family, **settings).bfloat16()
    model.save_pretrained(tmp_path / "one")
    loaded = load_memory_lm(tmp_path / "one")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # `bfloat16()` rounds rotary frequencies, which loading does not: compare two loaded models.
    loaded.save_pretrained(tmp_path / "two")
    ids = tokens()
    assert torch.equal(logits(load_memory_lm(tmp_path / "two"), ids), logits(loaded, ids))


def test_a_plain_model_loads_too(tmp_path):
    model = build_memory_lm(base_config("qwen2"), None, VOCABULARY).eval()
    model.save_pretrained(tmp_path)
    ids = tokens()
    assert torch.equal(logits(load_memory_lm(tmp_path), ids), logits(model, ids))


def test_memory_goes_into_a_pretrained_folder(tmp_path):
    base = build_base_lm(base_config("llama"), VOCABULARY).eval()
    base.save_pretrained(tmp_path)
    config = BaseLMConfig(pretrained=str(tmp_path))
    model = build_memory_lm(config, memory_config(placement="beside"), VOCABULARY).eval()
    ids = tokens()
    assert torch.equal(logits(model, ids), logits(base, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_table_is_one_parameter_saved_once(family, tmp_path):
    model = build(family, layers=[0, 1, 2])
    shape = (64, 20)
    names = [name for name, p in model.named_parameters() if p.shape == shape]
    assert names == ["memory_values.0.weight"]
    assert all(layer.values is model.memory_values[0] for layer in memory_layers(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert [name for name, tensor in saved.items() if tensor.shape == shape] == names
    loaded = load_memory_lm(tmp_path)
    assert all(layer.values is loaded.memory_values[0] for layer in memory_layers(loaded))


def test_own_tables_are_one_parameter_each():
    model = build("llama", share_values=False)
    first, second = memory_layers(model)
    assert first.values is model.memory_values[0]
    assert second.values is model.memory_values[1]
    assert not torch.equal(first.values.weight, second.values.weight)


# -- what loading refuses -------------------------------------------------------------------------


def edit_weights(folder: Path, edit) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("key", ["memory_values.0.weight", "model.layers.2.mlp.index.keys"])
def test_missing_weights_are_refused(tmp_path, key):
    build("llama").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop(key))
    with pytest.raises(ValueError, match=rf"do not fit .*missing_keys.*{key}"):
        load_memory_lm(tmp_path)


def test_left_over_weights_are_refused(tmp_path):
    build("llama").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update(other=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"unexpected_keys.*other"):
        load_memory_lm(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json not found: give a folder"):
        load_memory_lm(tmp_path)


FRESH_PROCESS = """
import pickle, sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
model = pickle.load(open(sys.argv[2], "rb"))
print(type(model).__name__, model.config.model_type)
"""


@pytest.mark.slow
def test_a_fresh_process_refuses_what_it_does_not_know_and_unpickles_the_rest(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    pickled = tmp_path / "model.pickle"
    pickled.write_bytes(pickle.dumps(model))
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path), str(pickled)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    # Plain AutoModel must not drop the memory and go on.
    assert "trust_remote_code=True" in fresh.stdout
    assert "MemoryLlamaForCausalLM memory-llama" in fresh.stdout


def test_once_known_the_auto_class_loads_it_too(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    ids = tokens()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_memory_is_inserted_once():
    model = build("llama")
    with pytest.raises(ValueError, match="has memory layers already"):
        insert_memory_layers(model, memory_config())


# -- generation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_cached_generation_equals_uncached(family, placement):
    model = build(family, placement=placement)
    ids = tokens()
    assert greedy(model, ids, use_cache=True) == greedy(model, ids, use_cache=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_no_answer(family):
    model = build(family)
    ids = tokens(rows=1, length=5)
    alone = greedy(model, ids)[0][5:]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    out = model.generate(
        padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert out[0, 8:].tolist() == alone


# -- packed documents -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_packed_documents_are_read_as_if_alone(family, placement):
    model = build(family, placement=placement)
    lengths = [4, 1, 6]
    documents = [tokens(rows=1, length=length) for length in lengths]
    padding = 2
    packed = torch.cat([*documents, torch.zeros(1, padding, dtype=torch.int64)], 1)
    segments = torch.tensor([[1] * 4 + [2] + [3] * 6 + [0] * padding])
    positions = torch.cat([torch.arange(n) for n in [*lengths, padding]]).unsqueeze(0)
    mask = segment_attention_mask(segments)
    out = logits(model, packed, attention_mask=mask, position_ids=positions)
    assert out.isfinite().all()
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        alone = logits(model, document)
        torch.testing.assert_close(out[:, start : start + length], alone, rtol=1e-4, atol=1e-5)
        start += length


# -- copies and precisions ------------------------------------------------------------------------


def points_at_its_own_tables(model: PreTrainedModel) -> bool:
    return all(layer.values is model.memory_values[0] for layer in memory_layers(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_reads_its_own_table(family):
    model = build(family)
    ids = tokens()
    expected = logits(model, ids)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model)
        assert points_at_its_own_tables(again)
        assert again.memory_values[0] is not model.memory_values[0]
        assert torch.equal(logits(again, ids), expected)
        again.memory_values[0].weight.data.zero_()
        assert not torch.equal(logits(again, ids), expected)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to("cpu"),
        lambda model: model.to("meta"),
    ],
    ids=["bfloat16", "half", "double", "device", "meta"],
)
def test_moving_the_model_moves_the_table_its_layers_read(change):
    model = change(build("llama"))
    assert points_at_its_own_tables(model)
    reference = model.get_input_embeddings().weight
    assert model.memory_values[0].weight.dtype == reference.dtype
    assert model.memory_values[0].weight.device == reference.device
    if reference.device.type == "cpu":
        assert logits(model, tokens()).isfinite().all()


def test_loading_a_state_dict_changes_the_table_the_layers_read():
    model, other = build("llama"), build("llama")
    ids = tokens()
    assert not torch.equal(logits(model, ids), logits(other, ids))
    model.load_state_dict(other.state_dict())
    assert torch.equal(logits(model, ids), logits(other, ids))
