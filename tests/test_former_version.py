"""Files that version 0.1 wrote still load: its class paths were flat, without `triptych.`."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT
from triptych.cli import main
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.short_names import full_class_path

# A run of two steps: its `config.yaml`, its `export/` and logits of the export as 0.1 gave them;
# beside it composed configurations of four experiments.
FORMER = ROOT / "tests" / "data" / "version_0_1"


def class_paths(node: object) -> list[str]:
    if isinstance(node, list):
        return [path for child in node for path in class_paths(child)]
    if not isinstance(node, dict):
        return []
    own = [node["class_path"]] if isinstance(node.get("class_path"), str) else []
    return own + [path for child in node.values() for path in class_paths(child)]


@pytest.mark.parametrize("path", sorted(FORMER.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_is_read(path, workdir, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(path), "--print_config"])
    assert end.value.code == 0
    before = class_paths(yaml.safe_load(path.read_text()))
    after = class_paths(yaml.safe_load(capsys.readouterr().out))
    assert [full_class_path(name) for name in after] == [full_class_path(name) for name in before]
    assert all(full_class_path(name).startswith(("triptych.", "torch.")) for name in after)


def test_export_gives_the_same_logits():
    model = load_memory_lm(FORMER / "export")
    with torch.no_grad():
        logits_V = model(torch.arange(3, 15)[None]).logits[0, -1]
    expected = torch.tensor(json.loads((FORMER / "logits.json").read_text()))
    torch.testing.assert_close(logits_V[: len(expected)], expected, rtol=0, atol=2e-5)


def test_run_goes_again_and_starts_from_the_export(workdir: Path):
    words = ["fit", "--config", str(FORMER / "tiny_memory.yaml")]
    given = ["--model.init_args.init_from", str(FORMER / "export")]
    run = main([*words, *given, "--model.init_args.memory", "null"])
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert load_memory_lm(run / "export")
