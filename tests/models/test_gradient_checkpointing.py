"""Gradient checkpointing of decoder blocks: exact, in eval mode, with a cache."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel, DynamicCache, StaticCache

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.gradient_checkpointing import CheckpointedForward, checkpoint_blocks
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.objectives.batch_nll import batch_nll

FAMILIES = ["llama", "qwen3", "gpt2"]
IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))


def build(family: str = "llama", checkpointing: bool = False, dropout: float = 0.0):
    torch.manual_seed(0)
    base = BaseLMConfig(
        family=family,
        hidden_size=16,
        num_layers=3,
        num_heads=4,
        dropout=dropout,
        gradient_checkpointing=checkpointing,
    )
    return build_base_lm(base, 97)


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def calls_of(model) -> list[int]:
    """The blocks whose attention ran, in order."""
    ran: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.self_attn.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_to_the_bit(family, mode):
    plain, ours = build(family, dropout=0.3), build(family, checkpointing=True, dropout=0.3)
    for model in (plain, ours):
        getattr(model, mode)()
        torch.manual_seed(2)  # of dropout
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    theirs, found = gradients(plain), gradients(ours)
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in theirs.items())


def test_blocks_run_twice_with_gradients_and_once_without():
    model = build(checkpointing=True).eval()
    ran = calls_of(model)
    with torch.no_grad():
        model(input_ids=IDS)
    assert ran == [0, 1, 2]
    ran.clear()
    model(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert ran == [0, 1, 2, 2, 1, 0]


def test_a_copy_checkpoints_its_own_blocks():
    model = build(checkpointing=True)
    checkpoint_blocks(model)  # a second time changes nothing
    made = copy.deepcopy(model)
    for one, other in zip(model.model.layers, made.model.layers, strict=True):
        assert isinstance(other.forward, CheckpointedForward)
        assert other.forward.block is other
        assert one.forward.block is one
    made(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert gradients(made)
    assert not gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_filled_once_and_its_gradient_arrives(family):
    """A prompt is read into a cache, and its completion with it: as one pass over both."""
    plain, ours = build(family).eval(), build(family, checkpointing=True).eval()
    plain(input_ids=IDS, use_cache=False).logits[:, 7:].logsumexp(-1).sum().backward()
    cache = DynamicCache(config=ours.config)
    ours(input_ids=IDS[:, :7], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 7
    logits = ours(input_ids=IDS[:, 7:], past_key_values=cache, use_cache=True).logits
    assert cache.get_seq_length() == 12
    keys = [layer.keys for layer in cache.layers]
    logits.logsumexp(-1).sum().backward()
    assert cache.get_seq_length() == 12
    assert all(layer.keys is key for layer, key in zip(cache.layers, keys, strict=True))
    theirs, found = gradients(plain), gradients(ours)
    assert found.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("gradient", ["dense", "selected_rows"])
def test_reads_of_a_memory_count_once(gradient):
    batch = {
        "input_ids": IDS,
        "labels": IDS,
        "segment_ids": torch.ones_like(IDS),
        "position_ids": torch.arange(12).expand(2, 12),
        "num_bytes": torch.ones_like(IDS),
    }
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        base = BaseLMConfig(
            hidden_size=16, num_layers=3, num_heads=4, gradient_checkpointing=checkpointing
        )
        memory = MemoryConfig(
            layers=[1], num_keys=16, num_heads=2, top_k=4, value_gradient=gradient
        )
        model = build_memory_lm(base, memory, 97).train()
        batch_nll(model, batch).sum_nats.backward()
        (table,) = model.memory_values
        value = table.weight.grad if gradient == "dense" else table.row_gradient().grad_UD
        found.append((value, gradients(model), [one.ids_BK for one in table.reads]))
    (value, theirs, reads), (own_value, ours, own_reads) = found
    assert torch.equal(value, own_value)
    assert all(torch.equal(ours[name], one) for name, one in theirs.items())
    assert len(reads) == len(own_reads)
    assert all(torch.equal(one, other) for one, other in zip(reads, own_reads, strict=True))


def test_a_saved_model_is_a_plain_one(tmp_path):
    model = build(checkpointing=True)
    model.save_pretrained(tmp_path)
    loaded = load_memory_lm(tmp_path)
    assert torch.equal(loaded.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
    assert not any("forward" in part.__dict__ for part in loaded.modules())


def test_a_cache_that_is_written_in_place_is_refused():
    model = build(checkpointing=True).eval()
    cache = StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(ValueError, match="needs a DynamicCache, but got one of StaticLayer"):
        model(input_ids=IDS, past_key_values=cache, use_cache=True)


def test_a_model_without_blocks_is_refused():
    class Plain(BertModel):
        def modules(self):
            return iter([self])

    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    with pytest.raises(ValueError, match="Plain has no decoder blocks for gradient checkpointing"):
        checkpoint_blocks(Plain(small))
