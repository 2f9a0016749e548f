"""Product keys converted to full keys: same outputs, saving and loading."""

import copy
import pickle

import pytest
import torch

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.index.faiss_codes import import_faiss
from triptych.models.remember.index.faiss_index import FaissSlotIndex
from triptych.models.remember.index.faiss_options import FaissOptions
from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.studies.remember.index_replacement import replace_index

VOCABULARY = 61
BASE = BaseLMConfig(hidden_size=32, num_layers=3, num_heads=4, max_position_embeddings=64)
#: Codes even for few slots, so coarse that they are seen, and exact ranks of most slots after them.
CODES = FaissOptions(exact_below=0, num_candidates=60)


def build(family="llama", **settings):
    memory = MemoryConfig(
        **({"layers": [0, 2], "num_keys": 8, "num_heads": 2, "top_k": 4} | settings)
    )
    base = BaseLMConfig(**(vars(BASE) | {"family": family}))
    return build_memory_lm(base, memory, VOCABULARY).eval()


def tokens():
    return torch.randint(VOCABULARY, (2, 9))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def greedy(model, ids, **settings):
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | settings
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings).tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("options", [None, CODES], ids=["exact", "codes"])
def test_the_model_says_the_same_and_is_saved_with_its_new_index(
    family, qk_norm, options, tmp_path
):
    model = build(family, qk_norm=qk_norm)
    ids = tokens()
    before, words = logits(model, ids), greedy(model, ids)
    assert replace_index(model, options) is model
    assert all(isinstance(layer.index, FaissSlotIndex) for layer in memory_layers(model))
    torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=1e-5)
    assert greedy(model, ids) == words == greedy(model, ids, use_cache=False)
    if options is not None and import_faiss() is not None:
        assert all(layer.index._codes is not None for layer in memory_layers(model))

    model.save_pretrained(tmp_path)
    loaded = load_memory_lm(tmp_path)
    assert all(isinstance(layer.index, FaissSlotIndex) for layer in memory_layers(loaded))
    assert memory_layers(loaded)[0].index.options == (options or FaissOptions())
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert greedy(loaded, ids) == words
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_copies_say_the_same():
    model = replace_index(build(), CODES)
    ids = tokens()
    expected = logits(model, ids)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again, ids), expected)


def test_removed_slots_stay_removed_in_a_saved_model(tmp_path):
    model = replace_index(build(layers=[1]))
    (layer,) = memory_layers(model)
    layer.recording = True
    ids = tokens()
    logits(model, ids)
    gone = layer.last_ids.unique()[:5]
    layer.index.remove(gone)
    model.save_pretrained(tmp_path)
    loaded = load_memory_lm(tmp_path)
    (layer,) = memory_layers(loaded)
    layer.recording = True
    logits(loaded, ids)
    assert layer.index.num_active == 64 - 5
    assert not torch.isin(layer.last_ids, gone).any()


def test_the_keys_do_not_train_and_the_rest_does():
    model = replace_index(build(qk_norm=True)).train()
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not any("index.keys" in name for name, _ in model.named_parameters())
    assert all(layer.index.query_gain.grad.any() for layer in memory_layers(model))


def test_what_was_frozen_stays_so():
    model = build(qk_norm=True).requires_grad_(False)
    assert not any(p.requires_grad for p in replace_index(model).parameters())


def test_a_model_without_memory_is_refused():
    with pytest.raises(ValueError, match="has no memory layers, so no index to replace: load"):
        replace_index(build_base_lm(BASE, VOCABULARY))


def test_an_index_is_replaced_once_and_a_refusal_changes_nothing():
    model = replace_index(build())
    memory_layers(model)[0].index = ProductKeyIndex(8, 2, 16)
    before = [type(layer.index) for layer in memory_layers(model)]
    with pytest.raises(ValueError, match="the model's index is a FaissSlotIndex: only product"):
        replace_index(model)
    assert [type(layer.index) for layer in memory_layers(model)] == before
