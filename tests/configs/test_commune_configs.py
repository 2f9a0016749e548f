"""The experiments of the third panel: stage after stage, small; and the paper's on stand-ins."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.conftest import ROOT
from tests.models.tiny_chat_model import chat_tokenizer
from triptych.cli import main
from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.datamodules.commune.reasoning import Reasoning
from triptych.datamodules.commune.state_cache import StateCache
from triptych.datamodules.sources.records import RecordSource
from triptych.lit_modules.commune.debate import Debate
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
from triptych.metrics.display.metric_names import has_name
from triptych.models.commune.agents import Agents
from triptych.models.commune.thought_system import ThoughtSystem

COMMUNE = ROOT / "configs" / "commune"
TASK = "--data.init_args.task.init_args"


def run(name: str, *options: object) -> Path:
    return main(
        [
            *("fit", "--config", str(COMMUNE / f"{name}.yaml"), "--tracking.uri", "null"),
            *("--config", str(ROOT / "configs" / "hardware" / "cpu.yaml")),
            *map(str, options),
        ]
    )


def summary(path: Path) -> dict:
    content: dict = json.loads((path / "summary.json").read_text())
    assert not [key for key in content["metrics"] if not has_name(key)], "give them a name"
    return content


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Path]:
    """The three stages, each on what the one before it left."""
    folder = tmp_path_factory.mktemp("commune")
    small = (f"{TASK}.num_train", 64, f"{TASK}.num_val", 24, "--trainer.val_check_interval", 3)
    small += ("--data.init_args.batch_size", 16, "--trainer.max_steps", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        # two sizes: the second agent is wider than the others
        base = {"family": "llama", "num_layers": 3, "num_heads": 2, "max_position_embeddings": 64}
        bases = [base | {"hidden_size": size} for size in (16, 24, 16)]
        agents = run("agents", *small, "--model.init_args.agents.bases", json.dumps(bases))
        start = ("--model.init_args.init_from", agents / "export")
        codec = ("--model.init_args.codec.private_per_agent", 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # after three steps hardly anything is settled
            autoencoder = run("masked_autoencoder", *small, *start, *codec)
        adapter = run(
            "masked_adapter",
            *(*small, "--model.init_args.init_from", autoencoder / "export"),
            *("--model.init_args.adapter.routing.mode", "all"),
            *("--model.init_args.rounds", 3, "--model.init_args.probe_samples", 64),
            *("--model.init_args.intervention_samples", 8),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # after three steps agents may give the same replies
            with pytest.raises(ValueError, match="agrees with the consensus of its debate"):
                run("agent_finetuning", *small, *start)  # no reply is a digit
            patch.setattr(PooledEvidence, "read_answer", lambda task, reply: reply or "nothing")
            finetuned = run("agent_finetuning", *small, *start)
    paths = {"agents": agents, "codec": autoencoder, "adapter": adapter, "finetuned": finetuned}
    return {name: (folder / path) for name, path in paths.items()}


@pytest.mark.slow
def test_the_sum_goes_from_agents_to_prefixes(workdir, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(workdir / "cache"))
    small = (f"{TASK}.num_train", 32, f"{TASK}.num_val", 8, "--data.init_args.batch_size", 16)
    small += ("--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
    init_from = "--model.init_args.init_from"
    agents = run("sum_modulo_agents", *small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # after one step nothing is settled
        codec = run("sum_modulo_autoencoder", *small, init_from, agents / "export")
    small += ("--model.init_args.probe_samples", 0, "--model.init_args.intervention_samples", 0)
    small += ("--model.init_args.adapter.routing.mode", "all")
    adapter = run("sum_modulo_adapter", *small, init_from, codec / "export")
    system = ThoughtSystem.load(adapter / "export")
    # The states that the codec reads are those in which the agents were taught to keep evidence.
    assert [system.state.layer(agent.num_layers) for agent in system.agents] == [1, 1, 1]
    metrics = summary(adapter)["metrics"]
    assert 0 <= metrics["val/thought/accuracy"] <= 1
    assert "val/text_2/accuracy" in metrics


def test_agents_learn_and_say_how_they_do_with_messages(stages):
    result = summary(stages["agents"])
    assert (result["status"], result["steps"]) == ("finished", 3)
    names = {"single", "text_1", "text_2", "text_full"}
    assert {f"val/{name}/accuracy" for name in names} <= result["metrics"].keys()
    assert 0 < result["metrics"]["val/state/evidence_share"] < 1


def test_the_codec_ends_in_a_structure(stages):
    report = json.loads((stages["codec"] / "structure.json").read_text())
    assert len(report["agreement"]) == 32
    assert len(report["jacobian_block_ranks"]) == len(report["states"]["agent_ranks"]) == 3
    assert 0 < report["jacobian_rank"] <= sum(report["jacobian_block_ranks"])
    grouped = [latent for block in report["identifiable_groups"] for latent in block["members"]]
    assert len(set(grouped)) == len(grouped) <= 32
    named = {finding["name"] for finding in report["findings"]}
    assert named >= {"identifiability", "invertibility", "spanning", "rank of the states"}
    assert named >= {"agreement with the states", "samples"}
    assert {finding["name"] for finding in report["findings"]} >= {"sharing", "gap"}
    assert (stages["codec"] / "figures" / "sharing.png").stat().st_size > 1000
    assert "val/states/explained_share" in summary(stages["codec"])["metrics"]


def test_latents_of_the_masked_encoder_are_their_owners(stages):
    report = json.loads((stages["codec"] / "structure.json").read_text())
    for agent in range(3):
        for latent in range(4 * agent, 4 * agent + 4):
            assert not any(latent in own for k, own in enumerate(report["private"]) if k != agent)
            assert latent not in report["shared"]
    metrics = summary(stages["codec"])["metrics"]
    assert metrics["train/adversary_error"] > 0
    assert metrics["train/outsider_error"] > 0


def test_thresholds_that_keep_everything_or_nothing(stages, workdir, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(workdir / "cache"))
    small = (f"{TASK}.num_train", 32, f"{TASK}.num_val", 8, "--data.init_args.batch_size", 16)
    small += ("--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
    start = (*small, "--model.init_args.init_from", stages["agents"] / "export")
    threshold = "--model.init_args.structure.threshold"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("autoencoder", *start, threshold, 0)
        path = run("autoencoder", *start, threshold, 0.999)
    told = " ".join(str(warning.message) for warning in caught)
    assert "there is no structure to route by" in told
    assert "matter to no agent" in told
    with pytest.raises(ValueError, match="lower the structure's threshold"):
        run("adapter", *small, "--model.init_args.init_from", path / "export")


def test_the_adapter_ends_in_accuracies_with_every_control(stages):
    metrics = summary(stages["adapter"])["metrics"]
    conditions = ("single", "text_1", "text_2", "text_full", "no_prefix", "thought")
    for name in (*conditions, "zero", "constant", "shuffled"):
        assert 0 <= metrics[f"val/{name}/accuracy"] <= 1, name
    # every agent has an answer of its own: they do not vote
    assert "val/majority/accuracy" not in metrics
    # three agents, all 32 latents or those that are alive, two exchanges of float32
    latents = metrics["val/thought/latent_bytes_per_question"]
    assert latents <= 3 * 32 * 4 * 2
    # Every agent's state reaches the encoder, which makes the thoughts.
    assert metrics["val/thought/bytes_per_question"] > latents
    times = [metrics[f"val/{n}/milliseconds_per_question"] for n in ("single", "text_full")]
    assert 0 < times[0] < times[1]
    assert metrics["val/thought/milliseconds_per_question"] > 0
    assert metrics["val/thought/state_milliseconds_per_question"] > 0
    assert 0.2 < metrics["val/leakage/planted_means_accuracy"] < 0.5
    assert 0 < metrics["val/leakage/lda_probe_accuracy"] < 1
    assert 0 < metrics["val/leakage/linear_probe_accuracy"] < 1
    assert 0 < metrics["val/leakage/nonlinear_probe_accuracy"] < 1


def test_latents_are_set_by_hand(stages):
    report = json.loads((stages["adapter"] / "interventions.json").read_text())
    assert [len(row) for row in report["state_KZ"]] == [32] * 3
    metrics = summary(stages["adapter"])["metrics"]
    # what the encoder's masks rule out for a reader, the decoder may still use; routing is exact
    routed = torch.tensor(report["routed_KZ"])
    assert (torch.tensor(report["prefix_KZ"])[~routed] == 0).all()
    assert (torch.tensor(report["prefix_KZ"])[routed] > 0).all()
    assert metrics["val/do/state/expected_effect"] > 0
    assert 0 <= metrics["val/do/reply/expected_effect"] <= 1


def test_agents_are_finetuned_on_their_debates(stages):
    before = Agents.load(stages["agents"] / "export")
    after = Agents.load(stages["finetuned"] / "export")
    assert len({id(agent) for agent in after}) == len(after) == 3
    for one, other in zip(before.fingerprints(), after.fingerprints(), strict=True):
        assert one != other
    metrics = summary(stages["finetuned"])["metrics"]
    assert {f"val/{name}/accuracy" for name in ("single", "text_full")} <= metrics.keys()


@pytest.mark.parametrize("gradient", ["straight_through", "reinforce"])
def test_sampled_replies_train_too_and_text_may_circulate(stages, gradient, workdir, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(workdir / "cache"))
    path = run(
        "adapter",
        *("--model.init_args.init_from", stages["codec"] / "export", f"{TASK}.num_train", 64),
        *(f"{TASK}.num_val", 8, "--data.init_args.batch_size", 16, "--trainer.fast_dev_run", 1),
        *("--model.init_args.loss.gradient", gradient, "--model.init_args.rounds", 3),
        *("--model.init_args.text_between_rounds", "true", "--model.init_args.train_on", "all"),
        *("--model.init_args.adapter.routing.mode", "all", "--model.init_args.reference", "task"),
    )
    before = ThoughtSystem.load(stages["codec"] / "export")
    after = ThoughtSystem.load(path / "export")
    assert before.agents.fingerprints() == after.agents.fingerprints()
    assert summary(path)["metrics"]["train/nll_nats_per_token"] > 0


def test_no_checkpoint_holds_the_frozen_agents(stages):
    for name in ("codec", "adapter"):
        state = torch.load(stages[name] / "checkpoints" / "last.ckpt")["state_dict"]
        assert not any(".agents." in key for key in state)
        assert any(".codec." in key for key in state)


def test_agents_and_codec_stay_what_they_were_while_the_adapter_learns(stages):
    before = ThoughtSystem.load(stages["codec"] / "export")
    after = ThoughtSystem.load(stages["adapter"] / "export")
    assert before.agents.state_sizes == [16, 24, 16]
    assert before.agents.fingerprints() == after.agents.fingerprints()
    for name, tensor in before.codec.state_dict().items():
        assert torch.equal(tensor, after.codec.state_dict()[name]), name
    assert before.adapter is None
    assert [p.shape for p in after.prefixes(after.think(torch.randn(2, 56)))] == [
        (2, 1, 16),
        (2, 1, 24),
        (2, 1, 16),
    ]


def test_what_was_exported_serves_other_prompts(stages):
    """Two readings of the folder say the same of questions that no run has seen."""
    task = PooledEvidence(num_val=12, seed=5)
    questions, replies = task.questions("val"), []
    for _ in range(2):
        system = ThoughtSystem.load(stages["adapter"] / "export")
        system.adapter.routing.config = replace(system.adapter.routing.config, noise=0.0)
        debate = Debate(system.agents, task)
        latents = system.think(debate.states(questions, system.state))
        assert latents.shape == (12, 32)
        replies.append(debate.replies(questions, prefixes=system.prefixes(latents)))
    assert replies[0] == replies[1]
    assert [len(of_agent) for of_agent in replies[0]] == [12, 12, 12]
    told = [
        debate.states(questions, system.state, system.prefixes(thoughts))
        for thoughts in (latents, latents + 1)
    ]
    assert not torch.allclose(*told)


def test_agents_that_were_changed_are_refused(stages, tmp_path):
    for file in (stages["codec"] / "export").rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(stages["codec"] / "export")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    system = ThoughtSystem.load(tmp_path)
    with torch.no_grad():
        system.agents[1].model.get_input_embeddings().weight += 1
    system.agents.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights of agent 1 are not those"):
        ThoughtSystem.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no codec with its agents"):
        ThoughtSystem.load(stages["agents"] / "export")


def test_states_were_cached_once_for_codec_and_adapter(stages):
    caches = sorted((stages["agents"].parents[3] / "cache" / "agent_states").glob("*-*"))
    folders = [path for path in caches if path.is_dir()]
    assert [path.name.partition("-")[0] for path in folders] == ["train", "val"]
    assert len(StateCache(folders[0])) == 64


@pytest.mark.slow
def test_the_papers_setting_on_small_models_of_its_class(workdir, monkeypatch, smollm2):
    """Agents of one model differ, reply once, and their states are those of their replies."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(workdir / "cache"))
    folder = workdir / "qwen3"
    tokenizer = chat_tokenizer(smollm2)
    # Qwen3's template reads this variable, SmolLM2's has no such thing.
    thinking = "{%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
    tokenizer.chat_template = thinking + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    qwen3 = Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)
    Qwen3ForCausalLM(qwen3).bfloat16().save_pretrained(folder)
    rows = workdir / "math.jsonl"
    row = '{"problem": "What is %d + 1?", "solution": "\\\\boxed{%d}", "level": 3}\n'
    rows.write_text("".join(row % (i, i + 1) for i in range(12)))
    small = [f"{TASK}.source.path", rows]
    small += [f"{TASK}.num_train", 8, f"{TASK}.num_val", 4, f"{TASK}.max_new_tokens", 4]
    small += ["--data.init_args.batch_size", 4]
    bases = json.dumps([{"pretrained": str(folder)}])
    few = ("--trainer.fast_dev_run", 2)
    codec = run("math_qwen3_codec", *small, *few, "--model.init_args.agents.bases", bases)
    assert summary(codec)["steps"] == 2
    (kept,) = (workdir / "cache" / "agent_replies").glob("*/*.jsonl")
    made = kept.read_text().splitlines()
    assert len({json.loads(line)["key"] for line in made}) == len(made) == 3 * 12
    few = ("--trainer.max_steps", 2, "--trainer.val_check_interval", 2)
    adapter = run("math_qwen3", *small, *few, "--model.init_args.init_from", codec / "export")
    assert summary(adapter)["steps"] == 2
    # The first replies of the codec's run are those of the adapter's: in its references, in two
    # steps and in validation only replies to the messages of others are new.
    after = kept.read_text().splitlines()
    assert after[: len(made)] == made
    assert len(after) == 2 * len(made)
    system = ThoughtSystem.load(adapter / "export")
    assert system.codec.config.num_latents == 1024
    assert [agent.temperature for agent in system.agents] == [0.7] * 3
    assert {agent.place for agent in system.agents} == {"user_text"}
    assert len({id(agent.model) for agent in system.agents}) == 1
    assert system.agents[0].model.dtype == torch.bfloat16
    assert not (adapter / "export" / "model_0").exists(), "pretrained agents are named, not copied"
    source = RecordSource(str(rows), columns={"question": "problem"})
    task = Reasoning(source, answer_kind="boxed", num_train=8, num_val=4, max_new_tokens=4)
    questions = task.questions("train")
    debate = Debate(system.agents, task)
    replies = debate.replies(questions)
    assert all(len(set(of_question)) == 3 for of_question in zip(*replies, strict=True))
    states = debate.states(questions, system.state).unflatten(1, (3, -1))
    assert (states[:, 0] - states[:, 1]).abs().amax() > 0.01
    # Where each says something else, most of them say something else than each alone.
    monkeypatch.setattr(Reasoning, "read_answer", lambda _, reply: str(len(reply) % 2))
    evaluation = DebateEvaluation(debate, 2, [])
    assert evaluation.majority(replies) != replies
