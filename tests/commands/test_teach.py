"""teach and unlearn on tiny models: what is known, what is learned, what is taken back."""

import json
import re
from argparse import ArgumentError
from pathlib import Path

import pytest
import torch

from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.cli import main
from triptych.commands.fact_questions import AskedFact, ask_facts, questions_of
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.datamodules.sources.records import RecordSource
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.objectives.remember.background_collector import BackgroundCollector
from triptych.objectives.remember.background_statistics import BACKGROUND_FILE

ADA = ("ada", "Where does Ada Brook live?", "Oslo", "Ada Brook lives in Oslo.")
BEN = ("ben", "Who leads Velmora?", "Lima", "Velmora is led by Lima.")
# All slots that a fact reads learn, so that a model of random weights can be taught in few steps.
SPARSE = {"ranking": "tf", "num_slots": "null", "score_share": "1.0", "learning_rate": "0.1"}
QUICKLY = [
    *(
        word
        for key, v in SPARSE.items()
        for word in (f"--callback.SparseMemoryFinetuning.{key}", v)
    ),
    *("--data.init_args.steps_per_visit", "80", "--tracking.uri", "null"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


def write_facts(path: Path, *facts: tuple[str, str, str, str]) -> str:
    names = ("id", "question", "answers", "statement")
    rows = (dict(zip(names, (i, q, [a], s), strict=True)) for i, q, a, s in facts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose memory can say any token, with background statistics."""
    folder = tmp_path_factory.mktemp("base") / "export"
    torch.manual_seed(0)
    data = Facts(FactsConfig(num_facts=40), tokenizer=TokenizerConfig(vocab_size=400))
    lm = BaseLMConfig(hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=128)
    memory = MemoryConfig(layers=[1], num_keys=32, num_heads=4, top_k=8, placement="beside")
    model = build_memory_lm(lm, memory, data.vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("memory_gate"):
                parameter.fill_(1.0)
            if "embed_tokens" in name:
                parameter.mul_(25.0)
    collector = BackgroundCollector(model, data.tokenizer)
    ids = torch.arange(3, 35)[None]
    batch = {"input_ids": ids, "position_ids": ids - 3, "segment_ids": torch.ones_like(ids)}
    collector.add_document(batch)
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    collector.statistics().save(folder / BACKGROUND_FILE)
    return folder


def knows(folder: Path, fact: tuple[str, str, str, str]) -> bool:
    asked = AskedFact(fact[0], fact[3], [fact[2]], fact[1])
    return ask_facts([asked], folder, "cpu")[0].own


def test_a_fact_is_taught_known_and_taken_back(base, workdir, capsys):
    facts = write_facts(workdir / "ada.jsonl", ADA)
    taught = main(["teach", facts, "--model", str(base), "--out", "taught", *QUICKLY])
    printed = capsys.readouterr().out
    assert "0 of 1 facts known before and passed over; 1 of 1 taught facts are answered" in printed
    assert ADA[3] in printed
    assert "of the taught facts: reliability 1.00 (1 of 1)\n" in printed
    assert re.search(r"general questions: \d+ of \d+ .* \d+ of 36 replies are the same", printed)
    assert taught == Path("taught")
    assert knows(taught, ADA)
    assert not knows(base, ADA)
    assert (taught / BACKGROUND_FILE).is_file()

    words = ["teach", facts, "--model", "taught", "--out", "again", *QUICKLY]
    assert main(words) == taught
    assert "the model knows all 1 facts already" in capsys.readouterr().out
    assert not Path("again").exists()

    back = main(["unlearn", ADA[3], "--model", "taught", "--out", "back", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert f"asked again: {ADA[1]}" in printed
    assert re.search(r"before: .*Oslo.* \(answered\)\n  now: .* \(not answered\)\n", printed)
    assert not knows(back, ADA)
    for own, other in zip(
        value_tables(load_memory_lm(back)), value_tables(load_memory_lm(base)), strict=True
    ):
        assert torch.equal(own.weight, other.weight)


def test_a_chat_model_is_asked_in_wordings_of_chat_form(smollm2, workdir):
    source = RecordSource(write_facts(workdir / "ada.jsonl", ADA))
    stream = FactStream(FactsConfig(source), tokenizer=TokenizerConfig(path=smollm2))
    (asked,) = questions_of(stream)
    assert asked.own == ADA[1]
    assert asked.other, "wordings that no row gives and no visit teaches"
    (row_format,) = stream._row_formats()
    taught = stream.part.visits(row_format).wordings[0]
    assert not {rendering.prompt for rendering in taught} & set(asked.other)


@pytest.mark.slow
def test_known_facts_are_passed_over_on_the_second_day(base, workdir, capsys):
    first = write_facts(workdir / "ada.jsonl", ADA)
    both = write_facts(workdir / "both.jsonl", ADA, BEN)
    main(["teach", first, "--model", str(base), "--out", "one", *QUICKLY])
    capsys.readouterr()
    two = main(["teach", both, "--model", "one", "--out", "two", *QUICKLY])
    assert "1 of 2 facts known before and passed over; 1 of 1 taught" in capsys.readouterr().out
    ledger = Ledger.open(two / "ledger")
    assert ledger.facts == ["ada", "ben"]
    assert ledger.num_sessions == 2
    for fact, row, out in (("velmora", BEN, "three"), (ADA[3], ADA, "four")):
        main(["unlearn", fact, "--model", "two", "--out", out])
        assert not knows(Path(out), row)


@pytest.mark.slow
def test_a_plain_model_gets_a_memory_first_and_once(workdir, capsys):
    plain = export_tiny_model(workdir / "plain", memory=False)
    facts = write_facts(workdir / "ada.jsonl", ADA)
    words = [*QUICKLY, "--trainer.max_steps", "1"]
    made = main(["teach", facts, "--model", str(plain), "--out", "made", *words])
    assert load_memory_lm(made).config.memory["layers"] == [1]
    (stage,) = Path("runs/stages").glob("teach_memory-*")
    changed = (stage / "summary.json").stat().st_mtime_ns
    main(["teach", facts, "--model", str(plain), "--out", "more", *words])
    assert [p.name for p in Path("runs/stages").glob("teach_memory-*")] == [stage.name]
    assert (stage / "summary.json").stat().st_mtime_ns == changed


def test_wrong_words_are_refused(base, workdir):
    facts = write_facts(workdir / "ada.jsonl", ADA)
    with pytest.raises(ArgumentError, match="the file of facts comes first"):
        main(["teach", "--tracking.uri", "null", facts, "--model", str(base), "--out", "new"])
    (workdir / "there").mkdir()
    with pytest.raises(ValueError, match="--out there exists already"):
        main(["teach", facts, "--model", str(base), "--out", "there"])
    with pytest.raises(FileNotFoundError, match="no ledger in"):
        main(["unlearn", "ada", "--model", str(base), "--out", "new"])
    with pytest.raises(ArgumentError, match="no such option"):
        main(["teach", facts, "--model", str(base), "--out", "new", "--modell.x", "1"])
