"""ask with agents: alone, by text and with thoughts, on notes."""

import json
import warnings
from argparse import ArgumentError
from pathlib import Path

import pytest

from tests.conftest import run_in
from tests.models.tiny_chat_model import tiny_chat_folder
from triptych.cli import main
from triptych.commands.asked_system import AskedSystem

COMMUNE = "triptych.lit_modules.commune"
NOTES = ["Anna is in the hall.", "Ben is in the garden."]
QUESTION = "Where is Ben?"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smollm2) -> dict[str, Path]:
    """A codec and an adapter that ran for one step, on agents with a real chat template."""
    folder = tmp_path_factory.mktemp("runs")
    model = tiny_chat_folder(folder / "model", smollm2)
    task = {
        "class_path": "triptych.datamodules.commune.noted_questions.NotedQuestions",
        "init_args": {"num_train": 8, "num_val": 2, "max_new_tokens": 4},
    }
    data = {"class_path": "triptych.datamodules.commune.agent_states.AgentStates"}
    data["init_args"] = {"task": task, "batch_size": 4}
    trainer = {"max_steps": 1, "val_check_interval": 1, "num_sanity_val_steps": 0}
    agents = {"bases": [{"pretrained": model}], "num_agents": 2, "names": ["ann", "bob"]}
    agents |= {"roles": ["You are Ann.", "You are Bob."]}
    sizes = {"num_latents": 4, "encoder_hidden": [8], "decoder_hidden": [8]}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        warnings.simplefilter("ignore")  # after a step nothing is settled
        arguments = {"agents": agents, "codec": sizes}
        module = {"class_path": f"{COMMUNE}.thought_autoencoder.ThoughtAutoencoder"}
        module["init_args"] = arguments
        codec = run_in(folder, name="codec", data=data, model=module, trainer=trainer)
        arguments = {"init_from": str(codec / "export"), "adapter": {"routing": {"mode": "all"}}}
        arguments |= {"probe_samples": 0, "reference": "task", "text_budgets": []}
        module = {"class_path": f"{COMMUNE}.thought_adapter.ThoughtAdapter"}
        module["init_args"] = arguments
        adapter = run_in(folder, name="adapter", data=data, model=module, trainer=trainer)
    return {"codec": codec, "adapter": adapter}


def test_the_command_says_what_each_replies_and_who_sent_what(runs, tmp_path, capsys):
    note = tmp_path / "a.txt"
    note.write_text(NOTES[0] + "\n")
    export = runs["adapter"] / "export"
    capsys.readouterr()
    assert main(["ask", str(export), QUESTION, "--notes", str(note), NOTES[1]]) == export
    printed = capsys.readouterr().out.splitlines()
    told = AskedSystem(export).ask(QUESTION, NOTES)
    assert printed[0] == QUESTION
    replies = list(zip(told.alone, told.text, told.thoughts, strict=True))
    for name, ways in zip(("ann", "bob"), replies, strict=True):
        start = printed.index(f"  {name}") + 1
        shown = printed[start : start + 3]
        for line, way, reply in zip(
            shown, ("alone", "by text", "with thoughts"), ways, strict=True
        ):
            assert line == f"    {way:<14}{' '.join(reply.split()) or '(nothing)'}"
    assert f"  text: {sum(map(len, NOTES))} bytes of messages" in printed
    # two agents get all four latents as float32; the encoder reads 16 numbers of each agent
    assert "  thoughts: 32 bytes of latents, from 128 bytes of states" in printed
    assert [f"    {sent}" for sent in told.sent] == printed[-2:]
    assert printed[-1].startswith("    ann -> bob: ")


def test_ten_lines_of_python(runs):
    system = AskedSystem(runs["adapter"] / "export")
    told = system.ask(QUESTION, NOTES)
    assert told.names == ["ann", "bob"]
    (from_bob, from_ann) = told.sent
    assert (from_bob.sender, from_bob.receiver, from_ann.sender) == ("bob", "ann", "ann")
    structure = json.loads((runs["codec"] / "structure.json").read_text())
    assert from_bob.shared == structure["shared"]
    assert from_bob.private == structure["private"][1]
    assert from_bob.num_bytes == 4 * len(from_bob.shared + from_bob.private)
    # a prefix stands in the user's text, and the place is part of the export
    assert [agent.place for agent in system.agents] == ["user_text"] * 2
    assert told.thoughts == [of[0] for of in system.answer([system.task.ask(QUESTION, NOTES)])]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([QUESTION, "--notes", "one"], ValueError, "1 notes for 2 agents"),
        ([QUESTION, "--notes", "a.txt", "b"], FileNotFoundError, "no file a.txt"),
        ([QUESTION, "--notes", "a", "b", "--raw"], ArgumentError, "--raw fits a language model"),
    ],
)
def test_what_does_not_fit_is_said(runs, words, error, message):
    with pytest.raises(error, match=message):
        main(["ask", str(runs["adapter"] / "export"), *words])


def test_a_codec_alone_hands_on_no_thoughts(runs):
    with pytest.raises(ValueError, match="no adapter that would hand thoughts"):
        main(["ask", str(runs["codec"] / "export"), QUESTION, "--notes", *NOTES])
