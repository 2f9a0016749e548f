"""Memory put beside the FFNs of a trained model: the healing run trains it alone."""

import copy
import json

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import run_in
from tests.lit_modules.remember.test_memory_pretraining import TINY
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.remember.standardise_queries import StandardiseQueries
from triptych.cli import TriptychCLI, main
from triptych.lit_modules.remember import language_model_training
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm

MEMORY = {
    "layers": [0, 1],
    "num_keys": 8,
    "num_heads": 2,
    "top_k": 4,
    "placement": "beside",
    "relevance_gate": True,
}


def retrofit(export, **model):
    """Sections of a healing run that starts from an exported plain model."""
    arguments = TINY["model"]["init_args"] | {"memory": MEMORY, "train_only": "memory"}
    arguments |= {"init_from": str(export), "learning_rate": 0.02} | model
    return TINY | {"model": TINY["model"] | {"init_args": arguments}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The export of a plain model."""
    arguments = TINY["model"]["init_args"] | {"memory": None}
    sections = TINY | {"model": TINY["model"] | {"init_args": arguments}}
    return (
        run_in(tmp_path_factory.mktemp("plain"), "--trainer.max_steps", "2", **sections) / "export"
    )


@pytest.fixture(scope="module")
def healed_export(tmp_path_factory, plain):
    """The export of a healing run."""
    return run_in(tmp_path_factory.mktemp("healed"), **retrofit(plain)) / "export"


def batch_of(model):
    return torch.arange(3, 15).unsqueeze(0) % model.config.vocab_size


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=batch_of(model), use_cache=False).logits


def test_healing_trains_the_memory_and_not_a_bit_of_the_rest(plain, healed_export):
    base, healed = load_memory_lm(plain), load_memory_lm(healed_export)
    frozen = base.state_dict()
    # Beside a memory the block's own FFN is called `mlp.ffn`.
    state = {name.replace(".mlp.ffn.", ".mlp."): t for name, t in healed.state_dict().items()}
    assert frozen.keys() <= state.keys()
    for name, tensor in frozen.items():
        assert torch.equal(state[name], tensor), name
    for block in healed.model.layers:
        assert block.mlp.memory_gate != 0
        assert block.mlp.relevance.bias != 0
    assert not torch.equal(logits(healed), logits(base))

    # What was healed can be taken up again, and then learns by its slots alone.
    learner = load_memory_lm(healed_export)
    assert learner.config.memory["relevance_gate"] is True
    assert torch.equal(logits(learner), logits(healed))


def test_what_learns_is_what_the_memory_is_made_of():
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2)
    memory = MemoryConfig(**(MEMORY | {"qk_norm": True}))
    module = MemoryPretraining(23, base, memory, train_only="memory")
    learns = {name for name, p in module.model.named_parameters() if p.requires_grad}
    everything = {name for name, _ in module.model.named_parameters()}
    parts = ("memory_values", ".memory.", ".memory_gate", ".relevance.")
    assert learns == {name for name in everything if any(part in name for part in parts)}
    assert learns < everything
    assert module.model.training


def test_zero_steps_leave_the_logits_as_they_were(tiny, plain):
    sections = retrofit(plain)
    run = main(tiny("--trainer.limit_train_batches", "0", **sections))
    base, fitted = load_memory_lm(plain), load_memory_lm(run / "export")
    assert len(memory_layers(fitted)) == 2
    assert torch.equal(logits(fitted), logits(base))


def test_a_healed_model_learns_by_its_slots_alone(tiny, healed_export):
    before = load_memory_lm(healed_export)
    learning = {
        "data": TINY["data"],
        "model": {
            "class_path": "triptych.lit_modules.remember.continual_finetuning.ContinualFinetuning",
            "init_args": {"init_from": str(healed_export), "max_new_tokens": 3},
        },
        "trainer": TINY["trainer"]
        | {
            "max_steps": 2,
            "val_check_interval": 2,
            "gradient_clip_val": None,
            "callbacks+": [
                {
                    "class_path": f"{SparseMemoryFinetuning.__module__}.SparseMemoryFinetuning",
                    "init_args": {"num_slots": 5, "ranking": "tf", "learning_rate": 1.0},
                }
            ],
        },
        "tracking": {"uri": None},
    }
    run = main(tiny(name="learning", **learning))
    after = load_memory_lm(run / "export")
    changed = {
        name
        for name, tensor in before.state_dict().items()
        if not torch.equal(after.state_dict()[name], tensor)
    }
    assert changed == {"memory_values.0.weight"}
    rows = (before.memory_values[0].weight != after.memory_values[0].weight).any(1)
    assert 0 < rows.sum() <= 2 * 5


def test_the_share_of_the_ffn_is_logged_for_each_block(healed_export):
    metrics = json.loads((healed_export.parent / "summary.json").read_text())["metrics"]
    for block in (0, 1):
        assert metrics[f"memory/layer_{block}/ffn_share"] > 1e-3


def test_a_memory_that_stays_without_effect_is_told(tiny, plain, monkeypatch):
    monkeypatch.setattr(language_model_training, "FEWEST_STEPS_TO_HEAL", 1)
    still = retrofit(plain, learning_rate=0.0, value_learning_rate=0.0)
    with pytest.warns(UserWarning, match=r"memory adds 0% of its FFN \(blocks 0, 1\): it has no"):
        main(tiny("--trainer.max_steps", "1", "--trainer.val_check_interval", "1", **still))


def test_queries_are_standardised_once_before_the_first_step(tiny, plain):
    callback = {"class_path": f"{StandardiseQueries.__module__}.StandardiseQueries"}
    memory = MEMORY | {"start": "zero_values", "qk_norm": True}
    sections = retrofit(plain, memory=memory)
    sections["trainer"] = TINY["trainer"] | {"callbacks+": [callback]}
    options = ("--trainer.max_steps", "0", "--trainer.limit_val_batches", "0")
    first = load_memory_lm(main(tiny(*options, **sections)) / "export")
    assert all(layer.query.bias.any() for layer in memory_layers(first))
    assert torch.equal(logits(first), logits(load_memory_lm(plain)))
    first.save_pretrained("again")
    AutoTokenizer.from_pretrained(plain).save_pretrained("again")
    sections = retrofit("again", memory=None)
    sections["trainer"] = TINY["trainer"] | {"callbacks+": [callback]}
    second = load_memory_lm(main(tiny(*options, name="second", **sections)) / "export")
    for one, other in zip(memory_layers(first), memory_layers(second), strict=True):
        assert torch.equal(one.query.weight, other.query.weight)
        assert torch.equal(one.query.bias, other.query.bias)


def test_there_must_be_a_memory_to_train_alone():
    with pytest.raises(
        ValueError, match="train_only is memory, but the model has no memory layers"
    ):
        MemoryPretraining(23, BaseLMConfig(hidden_size=16, num_heads=2), train_only="memory")


@pytest.mark.parametrize(
    ("embedded", "fits"), [(399, False), (400, True), (406, True), (420, False)]
)
def test_families_may_pad_their_embeddings_a_little(tmp_path, embedded, fits):
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2)
    build_memory_lm(base, None, embedded).save_pretrained(tmp_path)
    if fits:
        MemoryPretraining(400, init_from=str(tmp_path))
    else:
        with pytest.raises(
            ValueError, match=rf"has {embedded} tokens but the data's tokenizer 400"
        ):
            MemoryPretraining(400, init_from=str(tmp_path))


def test_a_pretrained_model_brings_its_tokenizer_unless_the_data_name_one(tiny, plain):
    sections = copy.deepcopy(TINY)
    sections["model"]["init_args"]["base"] = {"pretrained": str(plain)}
    sections["data"]["init_args"]["tokenizer"] = {"vocab_size": 300}  # if it were trained
    words = tiny("--trainer.fast_dev_run", "1", **sections)
    cli = TriptychCLI(words)
    assert cli.datamodule.vocab_size == load_memory_lm(plain).config.vocab_size != 300
    own = str(plain / "tokenizer.json")
    named = TriptychCLI([*words, "--data.init_args.tokenizer.path", own])
    assert named.config["fit"].data.init_args.tokenizer.path == own
