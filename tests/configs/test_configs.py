"""Every configuration in `configs/` parses, and every experiment among them takes two steps."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from _pytest.mark import ParameterSet
from lightning.pytorch import LightningDataModule, LightningModule
from transformers import Qwen3Config, Qwen3ForCausalLM

import triptych.datamodules
import triptych.lit_modules
from tests.conftest import ROOT
from tests.discovery import classes_in
from triptych.class_lists import offered_classes
from triptych.cli import main, option_titles
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.text.text_corpus import TextCorpus
from triptych.metrics.display.metric_names import has_name
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_lm import load_memory_lm

CONFIGS = ROOT / "configs"
HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
EXPERIMENTS = sorted({*CONFIGS.rglob("*.yaml")} - {CONFIGS / "base.yaml", *HARDWARE, *DATA})

# Too large to be trained here, or from the hub; other tests build the first without memory for its
# weights, and run the second with a small model of its class.
ONLY_PARSED = {
    *(
        CONFIGS / "remember" / f"{name}.yaml"
        for name in ("pretrain_1b", "retrofit_qwen3", "retrofit_smollm2", "finetune_smollm2")
    ),
    # tests/configs/test_diversify_configs.py runs these
    *(CONFIGS / "diversify").glob("*_qwen*.yaml"),
    *(CONFIGS / "diversify").glob("*_smollm2.yaml"),
    *(CONFIGS / "diversify").glob("synth*.yaml"),
    # tests/configs/test_commune_configs.py runs these, stage after stage
    *(CONFIGS / "commune").glob("*.yaml"),
}

# One of each kind takes its steps on every change, the others where every test is run.
QUICK = {"quickstart.yaml", "diversify/one_or_two_base.yaml", "diversify/molecules_prior.yaml"}


def parsed(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """What the command line composes, without building anything of it."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *map(str, words), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def embedded_data(experiment: Path) -> list[str]:
    """Options that replace data from outside the repository by the embedded ones of their kind."""
    data = yaml.safe_load(experiment.read_text())["data"]
    if not isinstance(data, str):
        return []
    kind = Path(data).stem.removesuffix("_local").removesuffix("_hub").removesuffix("_embedded")
    there = (CONFIGS / "data" / f"{name}.yaml" for name in (f"{kind}_embedded", kind))
    return ["--data", str(next(path for path in there if path.is_file()))]


def relative(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_experiment_parses(path, capsys):
    composed = parsed(capsys, "--config", path)
    assert composed["trainer"]["use_distributed_sampler"] is False
    assert composed["model"]["class_path"].startswith("triptych.lit_modules.")
    assert path.read_text().startswith("#"), "its first line says what it is for"


@pytest.mark.parametrize("path", HARDWARE, ids=relative)
def test_hardware_goes_over_any_experiment(path, capsys):
    for experiment in EXPERIMENTS[:1]:
        composed = parsed(capsys, "--config", experiment, "--config", path)
        overlay = yaml.safe_load(path.read_text())["trainer"]
        assert {key: composed["trainer"][key] for key in ("accelerator", "devices")} == {
            key: overlay[key] for key in ("accelerator", "devices")
        }


@pytest.mark.parametrize("path", DATA, ids=relative)
def test_data_can_be_taken_by_name(path, capsys):
    composed = parsed(capsys, "--config", CONFIGS / "quickstart.yaml", "--data", path)
    assert composed["data"]["class_path"] == yaml.safe_load(path.read_text())["class_path"]


def taking_steps() -> list[ParameterSet]:
    """The experiments that can be trained here."""
    names = [relative(path) for path in EXPERIMENTS if path not in ONLY_PARSED]
    assert set(names) > QUICK
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in QUICK else slow) for name in names]


@pytest.mark.parametrize("name", taking_steps())
def test_experiment_takes_two_steps(name, stages_of_all):
    path = CONFIGS / name
    run = main(
        [
            *("fit", "--config", str(path), *embedded_data(path)),
            *("--config", str(CONFIGS / "hardware" / "cpu.yaml")),
            *("--trainer.fast_dev_run", "2"),
        ]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert summary["metrics"]
    assert not [key for key in summary["metrics"] if not has_name(key)], "give them a name"


@pytest.mark.slow
def test_the_qwen3_retrofit_takes_two_steps_on_a_small_model_of_its_class(workdir):
    data = CONFIGS / "data" / "text_embedded.yaml"
    folder = workdir / "qwen3"
    tokenizer = TextCorpus(tokenizer=TokenizerConfig(vocab_size=400)).tokenizer
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_hidden_layers": 22}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    # As with the real one, more embeddings than tokens, in bfloat16.
    config = Qwen3Config(vocab_size=404, **sizes, **heads)
    base = Qwen3ForCausalLM(config).bfloat16()
    base.save_pretrained(folder)
    run = main(
        [
            *("fit", "--config", str(CONFIGS / "remember" / "retrofit_qwen3.yaml")),
            *("--data", str(data), "--data.init_args.tokenizer.path", str(folder)),
            *("--model.init_args.base.pretrained", str(folder)),
            *("--model.init_args.memory.num_keys", "32"),
            *("--config", str(CONFIGS / "hardware" / "cpu.yaml")),
            *("--trainer.fast_dev_run", "4"),  # steps of two batches each
        ]
    )
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    healed = load_memory_lm(run / "export")
    assert isinstance(healed, Qwen3ForCausalLM)
    assert len(memory_layers(healed)) == 3
    state = {name.replace(".mlp.ffn.", ".mlp."): t for name, t in healed.state_dict().items()}
    for name, tensor in base.state_dict().items():
        assert torch.equal(state[name], tensor.float()), name


def test_help_names_every_class_that_a_configuration_uses():
    for option, folder in (("model", "lit_modules"), ("data", "datamodules")):
        text = "".join(path.read_text() for path in (*EXPERIMENTS, *DATA))
        names = set(re.findall(rf"class_path: triptych\.{folder}\.([\w.]+)", text))
        assert len(names) >= 9
        assert {name for name in names if name not in option_titles()[option][1]} == set()


@pytest.mark.parametrize(
    ("package", "base", "method"),
    [
        (triptych.lit_modules, LightningModule, "configure_optimizers"),
        (triptych.datamodules, LightningDataModule, "train_dataloader"),
    ],
)
def test_help_names_the_classes_that_can_be_used(package, base, method):
    """The source files say the same as the classes themselves."""
    usable = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in classes_in(package, base)
        if inspect.getattr_static(kind, method) is not inspect.getattr_static(base, method, None)
        and kind.__module__.split(".")[2] in ("remember", "diversify", "commune")
    }
    folder = package.__name__.rpartition(".")[2]
    found = offered_classes(folder, base.__name__, method)
    assert usable == {f"{package.__name__}.{path}" for paths in found.values() for path in paths}
    assert all(found.values()), "every panel offers something"
