"""Every mistake that a user can make ends in one message: what, where, and what to do about it."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from triptych.callbacks.command_line.error_report import one_message_per_error
from triptych.cli import main
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining

DATA_SECTION = """\
data:
  class_path: triptych.datamodules.remember.text.text_and_facts.TextAndFacts
  init_args:
    tokenizer: {vocab_size: 400}
    text: {max_validation_rows: 4}
    facts: {num_facts: 12, validation_facts: 4}
    context_length: 96
    batch_size: 2
"""
CONFIG = (
    DATA_SECTION
    + """\
model:
  class_path: triptych.lit_modules.remember.memory_pretraining.MemoryPretraining
  init_args:
    base: {hidden_size: 16, num_layers: 2, num_heads: 2}
    memory:
      layers: [0, 1]
      num_keys: 8
      num_heads: 2
      top_k: 4
    warmup_steps: 2
    max_new_tokens: 2
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  val_check_interval: 4
  check_val_every_n_epoch: null
  log_every_n_steps: 1
tracking: {uri: null}
"""
)
FILES = {
    "bad.jsonl": '{"text": "A good row."}\n{"txt": "no field of that name"}\n',
    "no_json.jsonl": '{"question": "Who?", "answers": ["I"]}\n{"question": "Who?" "answers": []}\n',
    "no_answer.jsonl": '{"question": "Who?", "answers": ["I"]}\n{"question": "Who?"}\n',
    "empty.jsonl": "",
    "blank.jsonl": '{"text": "  "}\n',
    "included.yaml": "class_path: datamodules.facts.Facts\ninit_args:\n  batch_sise: 3\n",
    "broken.yaml": "model:\n  - [\ndata: 3\n",
    "list.yaml": "- model\n- data\n",
    "no_checkpoint.ckpt": "text",
}
DATA, MODEL, MEMORY = "--data.init_args.", "--model.init_args.", "--model.init_args.memory."


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One tokenizer for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def words(workdir: Path) -> Callable[..., list[str]]:
    """Makes a command line: options after the configuration above, with replacements in it."""
    for name, text in FILES.items():
        (workdir / name).write_text(text)

    def make(*options: str, **replaced: str) -> list[str]:
        text = CONFIG
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        (workdir / "mine.yaml").write_text(text)
        return ["fit", "--config", "mine.yaml", *options]

    return make


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the configuration above."""
    folder = tmp_path_factory.mktemp("earlier")
    (folder / "mine.yaml").write_text(CONFIG)
    return main(["fit", "--config", str(folder / "mine.yaml"), "--run_dir", str(folder / "run")])


def message_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """What the user reads when a command line fails, which it must, with an exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, one_message_per_error():
        main(words)
    assert end.value.code == code
    output = capsys.readouterr().err
    assert output.count("error: ") == 1
    message = output.partition("error: ")[2].removesuffix(
        "(TRIPTYCH_DEBUG=1 shows the traceback)\n"
    )
    assert len(message.splitlines()) == 1, "one message, not what the parser had tried"
    assert len(message) < 600
    assert not re.search(r"<class '|NoneType|Namespace|NestedArg|Traceback", message)
    return message


def check(message: str, *fragments: str) -> None:
    """Every fragment occurs, in this order."""
    rest = message
    for fragment in fragments:
        assert fragment in rest, message
        rest = rest.partition(fragment)[2]


@pytest.mark.parametrize(
    ("replaced", "fragments"),
    [
        ({"tracking": "optimiser: adam\ntracking"}, ["optimiser (mine.yaml, line 27)", "no such"]),
        ({"max_steps": "max_step"}, ["trainer.max_step (mine.yaml, line 23)", "mean max_steps?"]),
        ({"warmup_steps": "warmup_step"},
         ["model.init_args.warmup_step (mine.yaml, line 18)", "did you mean warmup_steps?"]),
        ({"num_keys": "num_kys"},
         ["model.init_args.memory.num_kys (mine.yaml, line 15)", "did you mean num_keys?"]),
        ({"hidden_size": "hiden_size"}, ["base.hiden_size (mine.yaml, line 12)", "hidden_size?"]),
        ({"num_facts": "num_fact"}, ["facts.num_fact (mine.yaml, line 6)", "mean num_facts?"]),
        ({"{max_validation_rows: 4}": "{train: [{paht: bad.jsonl}]}"},
         ["data.init_args.text.train.paht (mine.yaml, line 5)", "did you mean path?"]),
        ({"num_keys: 8": "zzz: 8"}, ["memory.zzz", "MemoryConfig takes layers, num_keys"]),
        ({"MemoryPretraining": "MemoryPretrainning"},
         ["model.class_path (mine.yaml, line 10)", "did you mean", "MemoryPretraining?"]),
        ({"text_and_facts": "text_and_fact"},
         ["data.class_path (mine.yaml, line 2)", "did you mean", "text_and_facts?"]),
        ({"trainer:":
          "trainer:\n  callbacks+: [{class_path: triptych.callbacks.run.nan_gard.NanGuard}]"},
         ["trainer.callbacks.class_path (mine.yaml, line 21)", "mean", "nan_guard?"]),
        ({"top_k: 4": "top_k: many"}, ["memory.top_k (mine.yaml, line 17)", "int, got 'many'"]),
        ({"top_k: 4": "placement: besides"}, ["'replace' or 'beside', got 'besides'"]),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_slip_in_a_file_is_found_there(words, capsys, replaced, fragments):
    check(message_of(words(**replaced), capsys, code=2), *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([MEMORY + "num_kays", "3"], ["memory.num_kays: there is no", "mean num_keys?"]),
        ([MEMORY + "num_keys", "x"], ["model.init_args.memory.num_keys: expected int, got 'x'"]),
        ([DATA + "tokenizer.pth", "x"], ["data.init_args.tokenizer.pth: ", "mean path?"]),
        (
            [MODEL + "learning_rate", "fast"],
            ["learning_rate: expected a number of at least 0, got 'fast'"],
        ),
        ([DATA + "facts.num_facts", "null"], ["--data.init_args.facts '{num_facts: null}'"]),
        (
            [MODEL + "learning_rate", "-1"],
            ["learning_rate: expected a number of at least 0, got -1"],
        ),
        (["--model", "3"], ["model: expected a class_path or the path of a .yaml file, got '3'"]),
        (
            [DATA + "facts_share", "1.5"],
            ["data.init_args.facts_share: expected a number between 0 and 1, got 1.5"],
        ),
        (["--config", "mime.yaml"], ["there is no file", "mime.yaml", "did you mean mine.yaml?"]),
        (["--config", "broken.yaml"], ["broken.yaml, line 4: not valid YAML"]),
        (["--config", "list.yaml"], ["list.yaml holds no configuration", "`model:`"]),
        (["--data", "included.yaml"], ["data.init_args.batch_sise", "did you mean batch_size?"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if value[0].startswith("--") else "",
)
def test_slip_on_the_command_line_is_named(words, capsys, options, fragments):
    check(message_of(words(*options), capsys, code=2), *fragments)


@pytest.mark.parametrize(
    ("included", "fragments"),
    [
        ("nowhere.yaml", ["data (short.yaml, line 1): there is no file nowhere.yaml"]),
        ("included.yaml", ["data.init_args.batch_sise (included.yaml, line 3)", "batch_size?"]),
    ],
)
def test_slip_in_an_included_file_is_found_there(words, workdir, capsys, included, fragments):
    words()
    model = "model: triptych.lit_modules.remember.memory_pretraining.MemoryPretraining\n"
    (workdir / "short.yaml").write_text(f"data: {included}\n{model}")
    check(message_of(["fit", "--config", "short.yaml"], capsys, code=2), *fragments)


@pytest.mark.parametrize("words", [[], ["fit"], ["train"]], ids=["nothing", "no config", "verb"])
def test_command_line_without_an_experiment_gets_an_example(workdir, capsys, words):
    check(message_of(words, capsys, code=2), "--config configs/quickstart.yaml")


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        # data: files and rows
        ([DATA + "text.train", "[{path: nowhere.jsonl}]"],
         ["no file at 'data/nowhere.jsonl'", "give a file that exists"]),
        ([DATA + "facts.source.path", "gone.csv"], ["no file at 'data/gone.csv'", "give a file"]),
        ([DATA + "text.train", "[{path: bad.jsonl}]"],
         ["bad.jsonl, line 2: field 'text' is missing", "`columns` renames"]),
        ([DATA + "facts.source.path", "no_json.jsonl"], ["no_json.jsonl, line 2: not valid JSON"]),
        ([DATA + "facts.source.path", "no_answer.jsonl"],
         ["no_answer.jsonl, line 2: field 'answers' is missing"]),
        ([DATA + "text.train", "[{path: empty.jsonl}]"],
         ["no text in 'empty.jsonl'", "give a source with at least one row"]),
        ([DATA + "text.train", "[{path: blank.jsonl}]"], ["no text in 'blank.jsonl'"]),
        ([DATA + "facts.source.path", "empty.jsonl"],
         ["no rows in 'empty.jsonl'", "give one with at least one row"]),
        ([MODEL + "base.max_position_embeddings", "32"],
         ["context_length is 96, but the model has 32 positions: lower it, or raise"]),
        ([MODEL + "init_from", "nowhere"], ["init_from: there is no folder nowhere", "`export`"]),
        ([MODEL + "init_from", "nowhere.yaml"], ["init_from: there is no file nowhere.yaml"]),
        # the run
        (["--run_dir", "mine.yaml"], ["--run_dir mine.yaml", "choose another place"]),
        (["--tracking.uri", "mlruns"], ["--tracking.uri mlruns", "Use sqlite:///"]),
        (["--ckpt_path", "gone.ckpt"], ["--ckpt_path: there is no checkpoint gone.ckpt", "last"]),
        (["--ckpt_path", "no_checkpoint.ckpt"],
         ["no_checkpoint.ckpt cannot be loaded as a checkpoint", "give the checkpoints/last.ckpt"]),
        (["--checkpoint.monitor", "val/typo"],
         ["checkpoint.monitor: there is no metric val/typo", "val/facts/f1", "last.ckpt"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if value[0].startswith("--") else "",
)  # fmt: skip
def test_what_cannot_work_is_refused(words, capsys, options, fragments):
    check(message_of(words(*options), capsys, code=1), *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([MEMORY + "top_k", "9"],
         ["memory.top_k=9 is larger than memory.num_keys=8", "Lower top_k or raise num_keys"]),
        ([MODEL + "base.num_heads", "3"],
         ["base.num_heads=3 does not divide base.hidden_size=16; choose a divisor"]),
        ([MODEL + "base.num_kv_heads", "3"], ["num_kv_heads=3 does not divide base.num_heads=2"]),
        ([MEMORY + "layers", "[0, 7]"],
         ["memory.layers [7] do not exist: the model has blocks 0 to 1"]),
        ([MEMORY + "key_dim", "7"], ["memory.key_dim=7 must be even"]),
        ([MODEL + "base.hidden_size", "18"], ["llama cannot be built from `base`", "even"]),
        ([MODEL + "base.family", "lama"], ["base.family='lama'", "try llama"]),
    ],
    ids=lambda value: value[0].rpartition(".")[2] if value[0].startswith("--") else "",
)  # fmt: skip
def test_model_that_cannot_be_built_is_refused(words, capsys, options, fragments):
    no_text_to_read = {DATA_SECTION: "data: tests.tiny_lightning.TinyData\n"}
    check(message_of(words(*options, **no_text_to_read), capsys, code=1), *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([DATA + "facts.subset_seed", "1"], ["was trained with another tokenizer", "config.yaml"]),
        ([DATA + "context_length", "64"],
         ["last.ckpt was trained on other data", "context_length", "config.yaml"]),
        ([DATA + "tokenizer.vocab_size", "420"],
         ["last.ckpt is of another model", "embed_tokens", "[400, 16] there, [420, 16] here",
          "config.yaml"]),
        ([MEMORY + "layers", "[1]"], ["last.ckpt is of another model", "config.yaml"]),
    ],
    ids=["other facts", "other rows", "other tokenizer", "other layers"],
)  # fmt: skip
def test_checkpoint_of_something_else_is_refused(words, capsys, earlier, options, fragments):
    checkpoint = earlier / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    resumed = words("--ckpt_path", str(checkpoint), *options)
    check(message_of(resumed, capsys, code=1), *fragments)
    assert checkpoint.read_bytes() == before


def test_damaged_checkpoint_is_refused(words, workdir, capsys, earlier):
    whole = (earlier / "checkpoints" / "last.ckpt").read_bytes()
    (workdir / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    message = message_of(words("--ckpt_path", "half.ckpt"), capsys, code=1)
    check(message, "half.ckpt cannot be loaded as a checkpoint", "give the checkpoints/last.ckpt")


def test_run_directory_in_use_is_left_alone(words, capsys, earlier):
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    message = message_of(words("--run_dir", str(earlier)), capsys, code=1)
    check(message, f"--run_dir {earlier} already holds a run", "Choose another folder", "last.ckpt")
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before


def test_nan_loss_stops_and_the_last_good_checkpoint_goes_on(words, capsys, earlier, monkeypatch):
    sound = MemoryPretraining.next_token_nll

    def breaks_at_step_3(self, batch):
        nll = sound(self, batch)
        if self.trainer.training and self.trainer.global_step == 3:
            nll.nats.data.mul_(float("nan"))
        return nll

    broken = words("--run_dir", "broken", "--checkpoint.every_n_train_steps", "2")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryPretraining, "next_token_nll", breaks_at_step_3)
        message = message_of(broken, capsys, code=1)
    checkpoint = Path("broken/checkpoints/last.ckpt").resolve()
    check(message, "loss is nan at step 3, on a batch from ", f"good checkpoint is {checkpoint}.")
    assert json.loads(Path("broken/summary.json").read_text())["status"] == "failed"

    resumed = main(words("--ckpt_path", str(checkpoint), "--run_dir", "resumed"))
    states = [
        torch.load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (earlier, resumed)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpoint_of_the_step_that_fails_is_not_called_good(words, capsys):
    broken = words(
        *("--checkpoint.every_n_train_steps", "1", "--trainer.gradient_clip_val", "null"),
        *(MODEL + "learning_rate", "1e30", MODEL + "warmup_steps", "0"),
    )
    check(message_of(broken, capsys, code=1), "loss is nan at step 1", "is of this very step")


def test_mlflow_that_refuses_connections_costs_nothing(words, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    run = main(words("--tracking.uri", uri, "--tracking.flush_seconds", "1"))
    check_finished_without(run, uri, caplog.text, "refused")


def test_mlflow_that_never_answers_costs_nothing(words, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = main(words("--tracking.uri", uri, "--tracking.flush_seconds", "2"))
    check_finished_without(run, uri, caplog.text, "timed out")


def check_finished_without(run: Path, uri: str, log: str, cause: str) -> None:
    check(log, f"MLflow at {uri} does not answer", cause, "Training continues")
    assert log.count("does not answer") == 1
    check(
        log,
        "lacks",
        "send the rest later with",
        "python -m triptych.callbacks.tracking.mlflow_tracking",
        uri,
    )
    content = json.loads((run / "summary.json").read_text())
    assert content["status"] == "finished"
    assert content["tracking"]["num_unsent"] > 0
    assert (run / "metrics.csv").is_file()
