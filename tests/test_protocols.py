"""Protocols between floors: how members are found, and that each protocol is documented."""

import inspect
import re

import pytest
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from typing_extensions import get_protocol_members, is_protocol

from tests.tiny_lightning import TinyData, TinyModule
from triptych import ROOT, protocols
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.diversify.categorical_policy import CategoricalPolicy
from triptych.objectives.rewards.answer_in_set import AnswerInSet

PROTOCOLS = [
    value
    for _, value in inspect.getmembers(protocols, inspect.isclass)
    if is_protocol(value) and value.__module__ == protocols.__name__
]


def test_every_protocol_and_its_members_are_in_the_table():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)`.*? \| (.*?) \|", text, re.MULTILINE))
    assert rows.keys() == {protocol.__name__ for protocol in PROTOCOLS}
    for protocol in PROTOCOLS:
        names = set(re.findall(r"`(\w+)[`(]", rows[protocol.__name__]))
        assert names == get_protocol_members(protocol), protocol
        assert inspect.getdoc(protocol)


def test_members_are_found_wherever_they_are_kept():
    """torch keeps submodules in a dictionary of the module; a class may have a property."""
    module, data = TinyModule(vocab_size=3), TinyData()
    assert isinstance(module, protocols.HoldsModel)
    assert isinstance(module, protocols.ShowsSamples)
    assert isinstance(module.model, protocols.SavesPretrained)
    assert not isinstance(module, protocols.Exports)
    assert isinstance(data, protocols.HasVocabulary)
    del module.sample_rows
    assert not isinstance(module, protocols.ShowsSamples)
    assert not isinstance(LightningModule(), protocols.HoldsModel)


def test_a_check_evaluates_no_property():
    class Expensive(LightningDataModule):
        @property
        def tokenizer(self) -> None:
            raise AssertionError("a tokenizer would be trained here")

    assert isinstance(Expensive(), protocols.HasTokenizer)


def test_a_subclass_that_inherits_a_protocol_is_an_ordinary_class():
    class Mine(protocols.StartsFrom):
        init_from = "folder"

    assert isinstance(Mine(), Mine)
    assert isinstance(Mine(), protocols.StartsFrom)
    assert not isinstance(TinyData(), Mine)


def test_the_error_names_protocol_and_members():
    error = protocols.missing(protocols.Exports, nn.Linear(1, 1), "ExportModel")
    expected = "ExportModel needs triptych.protocols.Exports, but Linear has no `export_state_dict`"
    assert str(error) == f"{expected}, `model`"


def test_a_policy_without_a_language_model_exports_none():
    policy = CategoricalPolicy(["a", "b"], [[0.5, 0.5]])
    module = PolicyOptimization(None, AnswerInSet.example(), policy=policy)
    assert isinstance(module, protocols.HoldsModel)
    assert module.model is None
    offered = (protocols.Exports, protocols.HasExperience, protocols.CountsModes)
    assert all(isinstance(module, kind) for kind in offered)
    with pytest.raises(AttributeError):
        module.modell  # noqa: B018
