"""What every probe must do. All of them are found in the package: a new one is tested unasked."""

import inspect
import pickle

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from tests.callbacks.remember.probes.conftest import FACTS, TinyLM
from tests.discovery import classes_in
from triptych.callbacks.remember import probes
from triptych.callbacks.remember.probes.base import Probe
from triptych.datamodules.sources.records import RecordSource

every_probe = pytest.mark.parametrize(
    "kind", classes_in(probes, Probe), ids=lambda kind: kind.__name__
)


def prepared(kind: type[Probe], lm: TinyLM) -> Probe:
    """The probe with its defaults, but on what lies in the repository."""
    takes_facts = "facts" in inspect.signature(kind).parameters
    data = {"facts": FACTS} if takes_facts else {"source": RecordSource()}
    probe = kind(**data, num_rows=4)
    probe.prepare(lm.setting())
    return probe


def test_probes_are_found():
    names = {kind.__name__ for kind in classes_in(probes, Probe)}
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
