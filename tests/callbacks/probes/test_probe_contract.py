"""What every probe must do. All of them are found in the package: a new one is tested unasked."""

import importlib
import inspect
import pickle
import pkgutil

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

import callbacks.probes
from callbacks.probes.base import Probe
from datamodules.records import RecordSource
from tests.callbacks.probes.conftest import FACTS, TinyLM


def find_probes() -> list[type[Probe]]:
    """Every concrete probe defined in the package, by walking its modules."""
    found = []
    for module_info in pkgutil.walk_packages(callbacks.probes.__path__, "callbacks.probes."):
        module = importlib.import_module(module_info.name)
        found += [
            value
            for _, value in inspect.getmembers(module, inspect.isclass)
            if issubclass(value, Probe)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        ]
    return found


every_probe = pytest.mark.parametrize("kind", find_probes(), ids=lambda kind: kind.__name__)


def prepared(kind: type[Probe], lm: TinyLM) -> Probe:
    """The probe with its defaults, but on what lies in the repository."""
    takes_facts = "facts" in inspect.signature(kind).parameters
    data = {"facts": FACTS} if takes_facts else {"source": RecordSource()}
    probe = kind(**data, num_rows=4)
    probe.prepare(lm.setting())
    return probe


def test_probes_are_found():
    names = {kind.__name__ for kind in find_probes()}
    assert names >= {"AnswerNLL", "ClosedBook", "FactRecall", "MultipleChoice", "TextPerplexity"}


@every_probe
def test_defaults_survive_yaml(kind):
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(Probe, "probe")
    path = f"{kind.__module__}.{kind.__name__}"
    parsed = parser.parse_args(["--probe", path])
    text = parser.dump(parsed)
    again = parser.parse_string(text)
    assert again.probe == parsed.probe
    assert yaml.safe_load(text)["probe"]["init_args"]["role"] in ("retained", "learned")
    assert type(parser.instantiate(again).probe) is kind


@every_probe
def test_it_measures_what_it_promises(tiny_lm, kind):
    probe = prepared(kind, tiny_lm)
    modes = [module.training for module in tiny_lm.model.modules()]
    with torch.no_grad():
        first, again = probe.measure(tiny_lm.model), probe.measure(tiny_lm.model)
    assert first == again
    assert probe.shown[0] == probe.headline
    assert set(probe.shown) | set(probe.groups) <= set(first)
    assert all(type(value) is float for value in first.values())
    if probe.higher_is_better:
        assert 0 <= first[probe.headline] <= 1
    assert probe.num_rows_used > 0
    assert [module.training for module in tiny_lm.model.modules()] == modes


@every_probe
def test_it_can_be_sent_to_another_process(tiny_lm, kind):
    """As strategies that spawn processes do, before it is prepared."""
    takes_facts = "facts" in inspect.signature(kind).parameters
    probe = kind(FACTS) if takes_facts else kind()
    assert vars(pickle.loads(pickle.dumps(probe))) == vars(probe)


@every_probe
def test_it_says_what_it_is(kind):
    assert inspect.getdoc(kind)
    assert "Args:" in inspect.getdoc(kind)
