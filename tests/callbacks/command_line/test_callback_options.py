"""Options of callbacks on the command line and in files, by the name of their class."""

from argparse import ArgumentError
from pathlib import Path

import pytest
import yaml

from triptych import ROOT
from triptych.cli import main

SPARSE = str(ROOT / "configs" / "remember" / "finetune_sparse.yaml")


def composed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict]:
    """Options of the callbacks in the composed configuration, by class."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", SPARSE, *words, "--print_config"])
    assert end.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    return {
        one["class_path"].rpartition(".")[2]: one.get("init_args", {})
        for one in config["trainer"]["callbacks"]
    }


def test_options_reach_the_callback_and_no_other(capsys):
    before = composed(capsys)
    words = ["--callback.SparseMemoryFinetuning.learning_rate", "1e-1"]
    words += ["--callback.ForgettingEvaluation.probes.learned.first_visits=3"]
    after = composed(capsys, *words)
    assert after["SparseMemoryFinetuning"].pop("learning_rate") == 0.1
    assert before["SparseMemoryFinetuning"].pop("learning_rate") == 0.03
    assert after["ForgettingEvaluation"]["probes"]["learned"]["init_args"].pop("first_visits") == 3
    before["ForgettingEvaluation"]["probes"]["learned"]["init_args"].pop("first_visits")
    assert after == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SparseMemoryFinetunin.num_slots", "1"], "did you mean SparseMemoryFinetuning?"),
        (["Sparse.num_slots", "1"], "has no Sparse; .*StepSeeds, .*SlotLedger"),
        (["SparseMemoryFinetuning.learning_rat", "1"], "did you mean learning_rate?"),
        (["SparseMemoryFinetuning", "1"], "no such option; .* takes num_slots, score_share"),
        (
            ["SparseMemoryFinetuning.num_slots", "many"],
            r"num_slots: expected int or null, got 'many'",
        ),
        (["ForgettingEvaluation.probes.learned.firs", "1"], "FactRecall takes facts, wording"),
        (["SparseMemoryFinetuning.num_slots"], "num_slots: expected a value"),
    ],
)
def test_errors_name_the_option(words, message):
    first, *rest = words
    with pytest.raises(ArgumentError, match=rf"^--callback\.{words[0].split('.')[0]}.*{message}"):
        main(["fit", "--config", SPARSE, f"--callback.{first}", *rest])


def test_a_run_takes_them_from_a_file_and_the_command_line(workdir: Path):
    """The command line comes last; what the run keeps can be run again as it is."""
    config = {
        "model": {
            "class_path": "tests.tiny_lightning.TinyModule",
            "init_args": {"vocab_size": 3},
        },
        "data": {"class_path": "tests.tiny_lightning.TinyData"},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "tracking": {"uri": None},
        "callback": {"SampleTable": {"max_rows": 3}, "RunReport": {}},
    }
    Path("own.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config", "own.yaml", "--run_dir"]
    kept = yaml.safe_load((main([*words, "a"]) / "config.yaml").read_text())
    assert sample_table(kept) == {"max_rows": 3}
    run = main([*words, "b", "--callback.SampleTable.max_rows", "4"])
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert sample_table(kept) == {"max_rows": 4}
    assert kept["callback"] is None


def sample_table(config: dict[str, dict]) -> dict[str, int]:
    (found,) = (
        c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("SampleTable")
    )
    return found["init_args"]
