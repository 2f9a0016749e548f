"""What needs whole weights refuses strategies that shard them, before anything runs."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from triptych.callbacks.remember.elastic_weight_consolidation import ElasticWeightConsolidation
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.sharded_strategy import ShardedStrategy
from triptych.lit_modules.commune.agent_finetuning import AgentFinetuning
from triptych.lit_modules.commune.agent_pretraining import AgentPretraining
from triptych.lit_modules.commune.thought_adapter import ThoughtAdapter
from triptych.lit_modules.commune.thought_autoencoder import ThoughtAutoencoder
from triptych.lit_modules.diversify.molecules.molecule_pretraining import MoleculePretraining
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.lit_modules.remember.continual_finetuning import ContinualFinetuning
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.sharding import shard_language_model

STRATEGIES = [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, ShardedStrategy]
MODULES = [
    AgentFinetuning,
    AgentPretraining,
    MoleculePretraining,
    PolicyOptimization,
    ThoughtAdapter,
    ThoughtAutoencoder,
]


def trainer_with(strategy: type, **members: object) -> SimpleNamespace:
    return SimpleNamespace(
        strategy=strategy.__new__(strategy), accumulate_grad_batches=1, precision="32-true"
    )


def bare(kind: type, strategy: type, **members: object):
    """A module without its models, which the check must come before."""
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    module.__dict__ |= {"_trainer": trainer_with(strategy), "_fabric": None, **members}
    return module


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", MODULES)
def test_modules_that_use_whole_models(kind, strategy):
    with pytest.raises(ValueError, match=rf"^{kind.__name__} .*, but {strategy.__name__} shards"):
        bare(kind, strategy).setup("fit")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adapters(strategy):
    visits = SimpleNamespace(stop_below_nats=None)
    module = bare(ContinualFinetuning, strategy, visits=visits, trainable="lora")
    with pytest.raises(ValueError, match=r"model\.init_args\.trainable=lora merges .*ddp\.yaml"):
        module.setup("fit")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "callback",
    [SparseMemoryFinetuning(ranking="tf"), ElasticWeightConsolidation(data=None)],
    ids=["sparse memory finetuning", "elastic weight consolidation"],
)
def test_callbacks_that_update_or_penalise_whole_weights(callback, strategy):
    with pytest.raises(ValueError, match=f"but {strategy.__name__} shards them: set trainer"):
        callback.setup(trainer_with(strategy), torch.nn.Linear(1, 1), "fit")


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_language_models_name_the_strategy_that_works(strategy):
    base = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=16)
    module = MemoryPretraining(19, base)
    module.__dict__["_trainer"] = trainer_with(strategy)
    with pytest.raises(ValueError, match=rf"is {strategy.__name__}, .* configs/hardware/fsdp2\."):
        module.configure_model()


def test_compact_gradients_of_a_table():
    base = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=16)
    memory = MemoryConfig(
        layers=[0], num_keys=8, num_heads=2, top_k=4, value_gradient="selected_rows"
    )
    with pytest.raises(ValueError, match=r"set memory\.value_gradient to dense"):
        shard_language_model(build_memory_lm(base, memory, 19), None)
