"""Every debate task goes through pretraining of agents, codec and adapter; so does a user's own."""

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import triptych.datamodules
from tests.discovery import classes_in
from triptych.datamodules.commune.agent_states import AgentStates
from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.lit_modules.commune.agent_pretraining import AgentPretraining
from triptych.lit_modules.commune.debate import Debate
from triptych.lit_modules.commune.thought_adapter import ThoughtAdapter
from triptych.lit_modules.commune.thought_autoencoder import CodecSizes, ThoughtAutoencoder
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents
from triptych.models.commune.prefix_adapter import PrefixAdapterConfig
from triptych.models.commune.thought_routing import RoutingConfig

WORDS = ["<bos>", "<eos>", "<pad>", "yes", "no", "left", "right", "said", "?"]
NUM_AGENTS = 2
BASE = BaseLMConfig(hidden_size=8, num_layers=2, num_heads=2, max_position_embeddings=256)


class Relay(DebateTask):
    """Each agent is asked for what the other one sees: only replies can tell."""

    num_agents = NUM_AGENTS
    max_new_tokens = 1

    def __init__(self, num_train: int = 8, num_val: int = 4) -> None:
        self.sizes = {"train": num_train, "val": num_val, "test": num_val}
        words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
        backend = Tokenizer(words)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<bos>",
            eos_token="<eos>",
            pad_token="<pad>",
            padding_side="left",
        )

    def questions(self, split):
        sides = ["left", "right"]
        return [Question(sides[:: 1 - 2 * (i % 2)], sides) for i in range(self.sizes[split])]

    def encode(self, tokenizer, questions, agent, messages=None):
        heard = messages or [[] for _ in questions]
        texts = [
            " ".join([question.evidence_of(agent), *said, "?"])
            for question, said in zip(questions, heard, strict=True)
        ]
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    def read_answer(self, reply):
        return reply if reply in ("left", "right") else None

    def messages(self, questions, replies, agent, max_tokens=None):
        others = [of for other, of in enumerate(replies) if other != agent]
        return [[f"said {of[i]}" for of in others] for i in range(len(questions))]

    def fingerprint(self, split):
        return f"relay {self.sizes} {split}"

    def reference_replies(self, questions, agent) -> list[str] | None:
        return [question.answer_of(agent) for question in questions]


class HalfRelay(Relay):
    """Knows what the first agent should say and not what the second one should."""

    def reference_replies(self, questions, agent):
        return None if agent else super().reference_replies(questions, agent)


class WordlessRelay(Relay):
    """Knows nobody's replies."""

    def reference_replies(self, questions, agent):
        return None


def build(kind: type[DebateTask]) -> DebateTask:
    """A task of few questions."""
    small = {"num_train": 8, "num_val": 4, "num_agents": NUM_AGENTS, "max_new_tokens": 2}
    taken = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in small.items() if name in taken})


TASKS = [*classes_in(triptych.datamodules, DebateTask), Relay, HalfRelay, WordlessRelay]


def fit(module, data, folder: Path) -> None:
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_steps": 2, "default_root_dir": folder},
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        **{"enable_model_summary": False, "num_sanity_val_steps": 0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # after two steps nothing is settled
        trainer.fit(module, data)


def pretrained(task: DebateTask, folder: Path, bases: int = 1) -> AgentPretraining:
    data = DebateQuestions(task, batch_size=4)
    config = AgentsConfig([BASE] * bases, num_agents=NUM_AGENTS)
    module = AgentPretraining(data.vocab_size, config, warmup_steps=1)
    fit(module, data, folder)
    return module


def untrained(task: DebateTask) -> Agents:
    """Agents that come with a tokenizer."""
    tokenizer = task.tokenizer or PooledEvidence().tokenizer
    agents = build_agents(AgentsConfig([BASE], num_agents=NUM_AGENTS), len(tokenizer))
    agents.give_tokenizer(tokenizer)
    return agents


def test_tasks_are_found():
    assert {kind.__name__ for kind in TASKS} >= {"PooledEvidence", "Reasoning", "Relay"}


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_has_one_entry_for_each_question(kind):
    task = build(kind)
    debate = Debate(untrained(task), task)
    questions = task.questions("train")
    assert [str(q) for q in questions] == [str(q) for q in build(kind).questions("train")]
    assert task.fingerprint("train") != task.fingerprint("val")
    replies = [[f"it is {agent}"] * len(questions) for agent in range(NUM_AGENTS)]
    messages = debate.hear(questions, replies, 1)
    assert messages.num_bytes > 0
    for agent in range(NUM_AGENTS):
        heard = messages.to(agent)
        assert [len(said) for said in heard] == [NUM_AGENTS - 1] * len(questions)
        alone = debate.prompts(questions, agent)
        assert all(
            a != b for a, b in zip(alone, debate.prompts(questions, agent, heard), strict=True)
        )
        known = debate.reference_replies(questions, agent)
        for reply, question in zip(known or [], questions, strict=known is not None):
            assert task.read_answer(reply) == question.answer_of(agent)
        for question in questions:
            assert len(task.report(question, agent)) == len(task.report_classes)
            assert bool(question.private) == bool(task.num_private_classes)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_goes_from_agents_to_prefixes(kind, tmp_path):
    task = build(kind)
    if task.tokenizer is None:
        with pytest.raises(ValueError, match="no tokenizer to train agents with"):
            pretrained(task, tmp_path)
        agents = untrained(task)
    elif all(task.reference_replies(task.questions("val"), k) is None for k in range(NUM_AGENTS)):
        with pytest.raises(ValueError, match=r"reference_replies returns None for agents \[0, 1\]"):
            pretrained(task, tmp_path)
        agents = untrained(task)
    else:
        module = pretrained(task, tmp_path)
        assert 0 <= module.trainer.callback_metrics["val/text_full/accuracy"] <= 1
        agents = module.model
    agents.save_pretrained(tmp_path / "agents")

    data = AgentStates(task, batch_size=4, cache_dir=str(tmp_path / "cache"))
    sizes = CodecSizes(num_latents=4, encoder_hidden=[8], decoder_hidden=[8])
    codec = ThoughtAutoencoder(str(tmp_path / "agents"), codec=sizes)
    fit(codec, data, tmp_path)
    codec.model.save_pretrained(tmp_path / "codec")

    data = AgentStates(task, batch_size=4, cache_dir=str(tmp_path / "cache"))
    knows_all = all(
        task.reference_replies(task.questions("val"), k) is not None for k in range(NUM_AGENTS)
    )
    adapter = ThoughtAdapter(
        str(tmp_path / "codec"),
        PrefixAdapterConfig(routing=RoutingConfig(mode="all")),
        reference="task" if knows_all else "text_debate",
        text_between_rounds=True,
        rounds=3,
        probe_samples=0,
    )
    fit(adapter, data, tmp_path)
    metrics = adapter.trainer.callback_metrics
    assert 0 <= metrics["val/thought/accuracy"] <= 1
    assert 0 <= metrics["val/text_full/accuracy"] <= 1


def test_an_agent_without_replies_is_left_out_of_teaching(tmp_path, monkeypatch):
    asked = []
    encode = HalfRelay.encode

    def noted(self, tokenizer, questions, agent, messages=None):
        asked.append((torch.is_grad_enabled(), agent))
        return encode(self, tokenizer, questions, agent, messages)

    monkeypatch.setattr(HalfRelay, "encode", noted)
    monkeypatch.setattr(AgentPretraining, "validation_step", lambda *_: None)
    monkeypatch.setattr("random.choice", lambda budgets: budgets[0])  # no messages
    pretrained(HalfRelay(), tmp_path)
    assert {agent for _, agent in asked} == {0}
    with pytest.raises(ValueError, match=r"returns None for agents \[1\]"):
        pretrained(HalfRelay(), tmp_path, bases=2)  # a model that nothing would teach


def test_messages_in_pretraining_follow_from_replies(tmp_path, monkeypatch):
    heard = []
    messages = Relay.messages

    def noted(self, questions: Sequence[Question], replies, agent, max_tokens=None):
        assert [len(of_agent) for of_agent in replies] == [len(questions)] * NUM_AGENTS
        heard.append(replies)
        return messages(self, questions, replies, agent, max_tokens)

    monkeypatch.setattr(Relay, "messages", noted)
    monkeypatch.setattr(AgentPretraining, "validation_step", lambda *_: None)
    monkeypatch.setattr("random.choice", lambda budgets: None)  # whole messages
    pretrained(Relay(), tmp_path)
    assert len(heard) == 2 * NUM_AGENTS  # steps, agents
    assert {reply for replies in heard for of_agent in replies for reply in of_agent} == {
        "left",
        "right",
    }


@pytest.mark.parametrize("method", ["encode", "messages", "reference_replies"])
def test_a_list_of_another_length_is_refused(method, tmp_path, monkeypatch):
    right = getattr(Relay, method)
    monkeypatch.setattr(Relay, method, lambda *args, **kwargs: right(*args, **kwargs)[:-1])
    with pytest.raises(ValueError, match=rf"Relay.{method} returned \d+ entries for \d+ questions"):
        pretrained(Relay(), tmp_path)


def test_a_report_of_another_length_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Relay, "report_classes", [2, 2])
    with pytest.raises(ValueError, match="returned 0 classes and report_classes has 2 entries"):
        pretrained(Relay(), tmp_path)


def test_a_task_without_questions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Relay.questions\('train'\) is empty"):
        pretrained(Relay(num_train=0), tmp_path)


def test_the_adapter_needs_replies_of_every_agent_to_imitate_the_tasks(tmp_path):
    task = HalfRelay()
    untrained(task).save_pretrained(tmp_path / "agents")
    data = AgentStates(task, batch_size=4, cache_dir=str(tmp_path / "cache"))
    codec = ThoughtAutoencoder(str(tmp_path / "agents"), codec=CodecSizes(num_latents=4))
    fit(codec, data, tmp_path)
    codec.model.save_pretrained(tmp_path / "codec")
    adapter = ThoughtAdapter(
        str(tmp_path / "codec"),
        PrefixAdapterConfig(routing=RoutingConfig(mode="all")),
        reference="task",
    )
    data = AgentStates(task, batch_size=4, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="knows no replies of agent 1"):
        fit(adapter, data, tmp_path)
