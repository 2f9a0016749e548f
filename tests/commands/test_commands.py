"""ask, chat and predict on real exports of tiny models."""

import io
import json
import shutil
from argparse import ArgumentError
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.callbacks.exporting.asking_form import exported_tokenizer, write_reply_limits
from triptych.cli import main
from triptych.commands.asked_model import AskedModel
from triptych.datamodules.batches.chat_template import PLAIN_TEMPLATE
from triptych.datamodules.diversify.molecules.smiles_tokenizer import atomwise_tokenizer
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE
from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, SmilesRNNConfig
from triptych.models.generation import continue_greedily
from triptych.models.remember.memory_lm import load_memory_lm

QUESTIONS = ["Which city is the capital of Bahrain?", "Who wrote Emma?"]


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    folder = export_tiny_model(run / "export")
    tokenizer = exported_tokenizer(AutoTokenizer.from_pretrained(folder), QUESTION_TEMPLATE, 128)
    tokenizer.save_pretrained(folder)
    write_reply_limits(folder, tokenizer, 6)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def talkative(export) -> Path:
    """The same model with a chat template that renders all turns."""
    folder = export.parent / "talkative"
    shutil.copytree(export, folder)
    (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def molecules(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    tokenizer = atomwise_tokenizer(["C", "N", "O"])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = SmilesRNN(SmilesRNNConfig(hidden_size=8, num_layers=1), len(tokenizer))
    model.use_vocabulary(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(export) -> list[str]:
    """Answers to the questions in the form of training, without the command's code."""
    model, tokenizer = load_memory_lm(export), AutoTokenizer.from_pretrained(export)
    answers = []
    for question in QUESTIONS:
        ids = tokenizer(f"Question: {question} Answer:")["input_ids"]
        ids_1T = torch.tensor([[tokenizer.bos_token_id, *ids]])
        answers += continue_greedily(model, tokenizer, ids_1T, torch.ones_like(ids_1T), 6)
    return [answer.strip() for answer in answers]


def test_ask_prints_the_answers_alone(export, expected, capsys):
    assert main(["ask", str(export), *QUESTIONS]) == export
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)
    main(["ask", str(export.parent), QUESTIONS[0]])  # the run's directory
    assert capsys.readouterr().out == f"{expected[0]}\n"


def test_of_several_exports_the_last_is_asked(export, talkative, expected, capsys):
    """`runs/quickstart/*/export` matches every run, and the last is the newest."""
    assert main(["ask", str(talkative), str(export), QUESTIONS[0]]) == export
    output = capsys.readouterr()
    assert output.out == f"{expected[0]}\n"
    assert str(export) in output.err


def test_ask_samples_and_limits(export, expected, capsys):
    words = ["ask", str(export), QUESTIONS[0], "--samples", "4", "--max_new_tokens", "3"]
    main(words)
    first = capsys.readouterr().out
    main(words)
    assert capsys.readouterr().out == first  # the same seed
    main(["ask", str(export), QUESTIONS[0], "--max_new_tokens", "3"])
    short = capsys.readouterr().out.strip()
    assert short != expected[0]
    assert expected[0].startswith(short)
    with pytest.raises(ValueError, match="same answer each time"):
        main([*words, "--temperature", "0"])


def test_raw_text_is_continued(export, capsys):
    model, tokenizer = load_memory_lm(export), AutoTokenizer.from_pretrained(export)
    ids = [tokenizer.bos_token_id, *tokenizer("The capital of")["input_ids"]]
    ids_1T = torch.tensor([ids])
    text = continue_greedily(model, tokenizer, ids_1T, torch.ones_like(ids_1T), 6)[0]
    main(["ask", str(export), "--raw", "The capital of"])
    assert capsys.readouterr().out == f"{text.strip()}\n"


def test_what_cannot_be_asked_says_what_to_do(export, molecules, tmp_path):
    cases = {
        str(export.parent / "checkpoints" / "last.ckpt"): "a checkpoint: give the folder `export`",
        str(export.parent / "checkpoints"): "give the folder `export` beside it",
        str(tmp_path / "nothing"): "there is no folder .*nothing",
        str(tmp_path): "config.json is missing",
        str(molecules): "predict .* --samples 100 --output molecules.smi",
    }
    for source, message in cases.items():
        with pytest.raises((ValueError, OSError), match=message):
            main(["ask", source, "Who?"])
    (tmp_path / "agents.json").write_text(json.dumps({"models": ["some/model"]}))
    with pytest.raises(ValueError, match=r"predict .*: some/model"):
        main(["chat", str(tmp_path)])
    (tmp_path / "thoughts.json").write_text("{}")
    with pytest.raises(ValueError, match="an autoencoder of thoughts and agents"):
        main(["chat", str(tmp_path)])
    with pytest.raises(ValueError, match="an autoencoder of thoughts, and no adapter"):
        main(["predict", str(tmp_path), "--input", "x", "--output", "y.jsonl"])
    with pytest.raises(ValueError, match="leave out the system message"):
        main(["ask", str(export), "Who?", "--system", "Be brief."])
    with pytest.raises(ValueError, match=r"--template x: .* has default"):
        main(["ask", str(export), "Who?", "--template", "x"])
    with pytest.raises(ValueError, match="the model has 128 positions"):
        main(["ask", str(export), "who " * 200])
    with pytest.raises(ArgumentError, match="ask --help"):
        main(["ask", str(export), "Who?", "--sample", "3"])


def test_chat_keeps_the_history_and_forgets_it(talkative, monkeypatch, capsys):
    seen = []
    encode = AskedModel.encode_chat

    def watched(self, messages, template):
        seen.append([message["content"] for message in messages])
        return encode(self, messages, template)

    monkeypatch.setattr(AskedModel, "encode_chat", watched)
    lines = [QUESTIONS[0], QUESTIONS[1], "/reset", "/help", QUESTIONS[1]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(talkative), "--max_new_tokens", "4"]) == talkative
    output = capsys.readouterr()
    model = AskedModel(talkative)
    template = model.chat_template()
    asked = [{"role": "user", "content": QUESTIONS[0]}]
    ((reply,),) = model.replies([encode(model, asked, template)], 4)
    assert seen == [[QUESTIONS[0]], [QUESTIONS[0], reply, QUESTIONS[1]], [QUESTIONS[1]]]
    assert output.out.startswith(reply)  # streamed
    assert "/reset" in output.err


def test_chat_answers_each_question_of_a_model_of_facts(export, expected, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*QUESTIONS, "/exit", "never"])))
    main(["chat", str(export)])
    assert capsys.readouterr().out.split("\n") == [*expected, ""]


def test_chat_leaves_out_turns_that_no_longer_fit(talkative, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(QUESTIONS * 3)))
    main(["chat", str(talkative)])
    assert "no longer fit" in capsys.readouterr().err


def test_predict_answers_a_file(export, expected, tmp_path, capsys):
    rows = [{"question": QUESTIONS[0], "answers": ["Manama"]}, {"prompt": QUESTIONS[1]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    words = ["predict", str(export), "--input", str(tmp_path / "in.jsonl"), "--output", str(out)]
    assert main(words) == out
    answered = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["output"] for row in answered] == expected  # padding changes nothing
    assert answered[0]["question"] == QUESTIONS[0]
    assert answered[0]["exact_match"] is False
    with pytest.raises(ValueError, match="exists already"):
        main(words)
    whole = out.read_text()
    out.write_text(whole[: whole.index("\n") + 5])  # the second line is cut
    main([*words, "--resume"])
    assert out.read_text() == whole
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "Another?"}) + "\n")
    with pytest.raises(ValueError, match=r"row 1 of .* answers another row"):
        main([*words, "--resume"])
    main([*words, "--overwrite", "--samples", "2"])
    assert len(json.loads(out.read_text())["outputs"]) == 2


def test_predict_reads_lines_of_text(export, expected, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(QUESTIONS))
    words = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "o.jsonl")]
    main(["predict", str(export), *words, "--batch_size", "1"])
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert rows == [
        {"prompt": question, "output": answer}
        for question, answer in zip(QUESTIONS, expected, strict=True)
    ]


def test_predict_samples_molecules(molecules, tmp_path, capsys):
    out = tmp_path / "made.smi"
    main(["predict", str(molecules), "--samples", "50", "--output", str(out)])
    lines = out.read_text().splitlines()
    assert 0 < len(lines) <= 50
    assert all(read_molecule(line) is not None for line in lines)
    assert f"50 samples: {len(lines)} valid" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"written as \.smi"):
        main(["predict", str(molecules), "--output", str(tmp_path / "made.csv")])


def test_the_list_of_commands_is_complete(capsys):
    with pytest.raises(
        ArgumentError, match="'predict', 'sample', 'score', 'teach', 'unlearn', 'ledger'"
    ):
        main(["test"])
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "Ask an exported model questions." in shown
    assert (
        "{fit,validate,ask,chat,predict,sample,score,teach,unlearn,ledger,report}"
        in shown.replace("\n", "")
    )
