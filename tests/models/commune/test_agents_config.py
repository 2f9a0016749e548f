"""Agents built from sizes, or loaded."""

import pytest

from tests.models.commune.tiny_agents import base, tiny_agents
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agents_config import AgentsConfig, build_agents


def test_pretrained_agents_are_loaded_once(tmp_path):
    agent = tiny_agents()[0]
    agent.model.save_pretrained(tmp_path)
    agent.tokenizer.save_pretrained(tmp_path)
    pretrained = BaseLMConfig(pretrained=str(tmp_path))
    made = build_agents(AgentsConfig([pretrained, pretrained]))
    assert made[0] is made[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AgentsConfig([base()]), "1 agent"),
        (lambda: AgentsConfig([base()], num_agents=0), "0 agent"),
        (lambda: AgentsConfig([base(), base()], num_agents=3), "one each"),
        (lambda: AgentsConfig([base()], num_agents=2, names=["ann"]), "1 names"),
        (lambda: build_agents(AgentsConfig([base()], num_agents=2)), "has no weights"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
