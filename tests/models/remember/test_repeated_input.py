"""Repeated input: results are the same to the bit and kept only where nothing can differ."""

import copy
import pickle

import pytest
import torch
from transformers import PreTrainedModel

from triptych.models.base_lm import BaseLMConfig
from triptych.models.lora import LoRAConfig, add_lora
from triptych.models.remember.memory_blocks import decoder_blocks, memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.remember.repeated_input import RememberedCall, remember_repeated_input

VOCABULARY = 40
FAISS = "triptych.models.remember.index.faiss_index.FaissSlotIndex"


def build(family: str = "llama", dropout: float = 0.0, **memory) -> PreTrainedModel:
    """Build three blocks, memory in the last two; frozen, with tables as in sparse finetuning."""
    torch.manual_seed(0)
    base = BaseLMConfig(
        family=family,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        max_position_embeddings=32,
        dropout=dropout,
    )
    slots = MemoryConfig(layers=[1, 2], num_keys=8, num_heads=2, top_k=4, **memory)
    model = build_memory_lm(base, slots, VOCABULARY).train().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("memory_gate"):
            torch.nn.init.ones_(parameter)
    anchor = torch.zeros((), requires_grad=True)
    for table in value_tables(model):
        table.set_gradient("selected_rows")
        table.set_anchor(anchor)
    return model


def batch(seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(seed))


def step(model: PreTrainedModel, ids_BT: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Take a step like sparse memory finetuning; returns logits and the rows' gradients."""
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, 5:] = 0
    logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    gradients = []
    for table in value_tables(model):
        gradient = table.row_gradient()
        gradients += [gradient.rows_U, gradient.grad_UD]
        with torch.no_grad():
            table.weight[gradient.rows_U] -= 0.1 * gradient.grad_UD
        table.clear_reads()
    return logits.detach(), *gradients


class Calls:
    """Counts the calls of a module, without a hook, which would switch remembering off."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self.forward = module.forward
        module.forward = self

    def __call__(self, *args: object) -> torch.Tensor:
        self.count += 1
        return self.forward(*args)


@pytest.mark.parametrize(
    ("family", "memory"),
    [
        ("llama", {}),
        ("llama", {"placement": "beside", "relevance_gate": True}),
        ("llama", {"index": FAISS, "qk_norm": True}),
        ("qwen3", {"share_values": False}),
        ("gpt2", {}),
    ],
)
def test_steps_are_the_same_to_the_bit(family, memory):
    plain, remembering = build(family, **memory), build(family, **memory)
    remember_repeated_input(remembering)
    lowest = decoder_blocks(remembering)[0]
    calls = Calls(lowest.mlp)
    for seed in (1, 1, 1, 2, 2, 1, 1):
        for ours, theirs in zip(
            step(remembering, batch(seed)), step(plain, batch(seed)), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert calls.count == 3
    values, others = (value_tables(model)[0].weight for model in (remembering, plain))
    assert torch.equal(values, others)


def test_the_layers_own_block_computes_attention_ffn_and_search_once(monkeypatch):
    model = build(placement="beside")
    searched = []
    lowest, upper = (layer.index for layer in memory_layers(model))
    lookup = type(lowest).lookup
    monkeypatch.setattr(
        type(lowest), "lookup", lambda own, *given: searched.append(own) or lookup(own, *given)
    )
    (_, block, above) = decoder_blocks(model)
    attention, ffn = Calls(block.self_attn.q_proj), Calls(block.mlp.ffn.down_proj)
    over = Calls(above.self_attn.q_proj)
    remember_repeated_input(model)
    for _ in range(4):
        step(model, batch(0))
    assert (attention.count, ffn.count, over.count) == (1, 1, 4)
    assert [index is lowest for index in searched].count(True) == 1
    assert [index is upper for index in searched].count(True) == 4


def test_another_mask_or_precision_is_another_input():
    model = build()
    calls = Calls(decoder_blocks(model)[0].mlp)
    remember_repeated_input(model)
    ids = batch(0)
    for mask in (torch.ones_like(ids).tril(3), torch.ones_like(ids).tril(3), None, None):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert calls.count == 2
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, use_cache=False)
    assert calls.count == 3


def test_nothing_is_remembered_outside_training():
    model = build()
    calls = Calls(decoder_blocks(model)[0].mlp)
    remember_repeated_input(model)
    with torch.no_grad():
        for _ in range(2):
            model(input_ids=batch(0), use_cache=False)
    with torch.inference_mode():
        for _ in range(2):
            model(input_ids=batch(0), use_cache=False)
    assert calls.count == 4
    # A cache of keys and values is filled by each call.
    lengths = [model(input_ids=batch(0), use_cache=True).past_key_values for _ in range(2)]
    assert [cache.get_seq_length() for cache in lengths] == [7, 7]
    assert calls.count == 6


def test_what_learns_is_computed_anew():
    model = build()
    block = decoder_blocks(model)[0]
    calls = Calls(block.mlp)
    remember_repeated_input(model)
    model(input_ids=batch(0), use_cache=False)
    block.requires_grad_(True)  # in the middle of a run
    for _ in range(2):
        model(
            input_ids=batch(0), use_cache=False
        ).logits.sum().backward()  # a second time through one graph fails
    assert calls.count == 3
    assert block.mlp.up_proj.weight.grad.abs().sum() > 0


def test_an_input_that_needs_a_gradient_gets_it():
    model = build()
    given = model.get_input_embeddings()(batch(0))
    remember_repeated_input(model)
    model(inputs_embeds=given, use_cache=False)
    same = given.clone().requires_grad_()
    model(inputs_embeds=same, use_cache=False).logits.sum().backward()
    assert same.grad.abs().sum() > 0


def test_a_hook_that_asks_for_the_gradient_of_an_output_sees_that_of_its_own_pass():
    model, norms = build(), []
    block = decoder_blocks(model)[0]
    block.register_forward_hook(lambda *call: norms.append(call[2].requires_grad_()))
    remember_repeated_input(model)
    for _ in range(3):
        model(input_ids=batch(0), use_cache=False).logits.sum().backward()
    first, *others = [output.grad.norm() for output in norms]
    assert all(torch.equal(first, other) for other in others)
    assert len({id(output) for output in norms}) == 3


def test_who_looks_into_a_block_sees_every_pass():
    model = build()
    model.set_attn_implementation("eager")
    remember_repeated_input(model)
    for _ in range(3):
        out = model(input_ids=batch(0), use_cache=False, output_attentions=True)
        assert len(out.attentions) == 3


def test_a_run_that_repeats_nothing_keeps_nothing():
    layer = torch.nn.Linear(2, 2).requires_grad_(False).eval()
    call = RememberedCall(layer, "forward")
    for number in range(70):
        call(torch.full((1, 2), float(number)))
    assert call(torch.ones(1, 2)) is not call(torch.ones(1, 2))
    assert call._last is None


def test_what_was_changed_in_place_is_computed_anew():
    layer = torch.nn.Linear(2, 2).requires_grad_(False).eval()
    call = RememberedCall(layer, "forward")
    given = torch.ones(1, 2)
    first = call(given)
    assert call(torch.ones(1, 2)) is first
    expected = first.clone()
    first.add_(1)
    assert torch.equal(call(torch.ones(1, 2)), expected)
    given.zero_()
    assert torch.equal(call(given), layer(torch.zeros(1, 2)))
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})
    assert torch.equal(call(given), layer(torch.zeros(1, 2)))
    layer.load_state_dict(
        {name: tensor + 1 for name, tensor in layer.state_dict().items()}, assign=True
    )
    assert torch.equal(call(given), layer(torch.zeros(1, 2)))
    layer.bias = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert call(given).tolist() == [[1, 1]]


def test_frozen_parts_have_no_dropout_and_the_others_keep_theirs():
    plain, remembering = build("gpt2", dropout=0.3), build("gpt2", dropout=0.3)
    plain.transformer.drop.eval()  # this dropout, of the embeddings, would make all input new
    remembering.transformer.drop.eval()
    lowest, block, _ = decoder_blocks(plain)
    for part in (lowest, block.ln_1, block.attn, block.ln_2):
        part.eval()
    remember_repeated_input(remembering)
    calls = Calls(decoder_blocks(remembering)[0].mlp)
    logits = []
    for seed in (1, 1, 1):
        steps = []
        for model in (remembering, plain):
            torch.manual_seed(len(logits))
            steps.append(step(model, batch(seed)))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*steps, strict=True))
        logits.append(steps[0][0])
    assert calls.count == 1
    # The layers above the memory keep their dropout.
    torch.manual_seed(0)
    one = remembering(input_ids=batch(1), use_cache=False).logits
    assert not torch.equal(one, remembering(input_ids=batch(1), use_cache=False).logits)


def test_a_part_put_in_training_mode_is_random_again():
    model = build(dropout=0.5)
    attention = decoder_blocks(model)[0].self_attn
    calls = Calls(attention.q_proj)
    remember_repeated_input(model)
    for _ in range(2):
        model(input_ids=batch(0), use_cache=False)
    assert calls.count == 1
    attention.train()
    one, other = (model(input_ids=batch(0), use_cache=False).logits for _ in range(2))
    assert calls.count == 3
    assert not torch.equal(one, other)


def test_models_that_nothing_is_remembered_of():
    plain = build_memory_lm(
        BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2), None, VOCABULARY
    )
    assert remember_repeated_input(plain) == []
    adapted = build()
    add_lora(adapted, LoRAConfig(rank=2))
    assert remember_repeated_input(adapted) == []
    nameless = build()
    del nameless.config.num_hidden_layers
    assert remember_repeated_input(nameless) == []
    replaced = build()
    block = decoder_blocks(replaced)[0]
    block.forward = block.forward  # replaced by somebody else, and must be called
    assert remember_repeated_input(replaced) == []
    assert all(module.training for module in (*plain.modules(), *replaced.modules()))


def test_it_can_be_taken_out_copied_and_pickled():
    model = build()
    decoder_blocks(model)[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    before = step(copy.deepcopy(model), batch(0))
    calls = remember_repeated_input(model)
    assert not any(module.training for module in decoder_blocks(model)[0].modules())
    step(copy.deepcopy(model), batch(0))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        own = decoder_blocks(other)[0].forward
        assert own.module is decoder_blocks(other)[0]
        assert own is not calls[0]
        assert torch.equal(step(other, batch(0))[0], before[0])
    for call in calls:
        call.remove()
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert "lookup" not in memory_layers(model)[0].index.__dict__
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(step(model, batch(0))[0], before[0])


def test_tensors_of_inference_mode_are_not_remembered():
    layer = torch.nn.Linear(2, 2).requires_grad_(False).eval()
    call = RememberedCall(layer, "forward")
    with torch.inference_mode():
        given = torch.ones(1, 2)
    assert torch.equal(call(given), call(given))
    assert call(given) is not call(given)


def test_a_call_that_fills_something_is_made_each_time():
    class Filled:
        count = 0

    class Fills(torch.nn.Module):
        def forward(self, given: torch.Tensor, filled: Filled) -> torch.Tensor:
            filled.count += 1
            return given + 1

    call, filled, given = RememberedCall(Fills().eval(), "forward"), Filled(), torch.ones(2)
    for _ in range(2):
        call(given, filled=filled)
    assert filled.count == 2
