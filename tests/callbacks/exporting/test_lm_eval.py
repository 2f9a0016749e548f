"""The LM Evaluation Harness evaluates an export in a process that never imports Triptych."""

import json
import os
import subprocess
import sys

import pytest

from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych import ROOT
from triptych.callbacks.exporting.asking_form import exported_tokenizer
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE


@pytest.mark.slow
def test_lm_eval_asks_ten_facts(tmp_path):
    pytest.importorskip("lm_eval", reason="needs `pip install lm_eval`")
    from transformers import AutoTokenizer

    export = export_tiny_model(tmp_path / "export")
    own = AutoTokenizer.from_pretrained(export)
    exported_tokenizer(own, QUESTION_TEMPLATE, 128).save_pretrained(export)
    words = [
        *("--model", "hf", "--model_args", f"pretrained={export},trust_remote_code=True"),
        *("--tasks", "ten_facts", "--include_path", str(ROOT / "tests" / "data" / "lm_eval")),
        *("--apply_chat_template", "--device", "cpu", "--output_path", str(tmp_path / "results")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")}
    subprocess.run([sys.executable, "-m", "lm_eval", *words], cwd=ROOT, env=environment, check=True)
    (results,) = (tmp_path / "results").rglob("results*.json")
    assert "exact_match,stripped" in json.loads(results.read_text())["results"]["ten_facts"]
