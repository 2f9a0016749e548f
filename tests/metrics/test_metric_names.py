"""Every log key has a name and a unit."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych import ROOT
from triptych.metrics.display.metric_names import has_name, metric_label, quantity_of, set_name

FOLDERS = ("callbacks", "lit_modules", "metrics")
LOGGING = {"log", "log_dict", "log_metrics"}


def logged_quantities() -> Iterator[tuple[Path, str]]:
    """Last parts of the keys that the source logs by name, and the names of metrics of prompts."""
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name in LOGGING:
                for part in ast.walk(node.args[0]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        _, slash, last = part.value.rpartition("/")
                        if slash and last and not last.endswith("_"):
                            yield path, last
            elif name == "__init__" and isinstance(node.args[0], ast.List):
                for part in node.args[0].elts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield path, part.value


def test_every_quantity_that_the_source_logs_has_a_name():
    found = {name: path for path, name in logged_quantities()}
    assert len(found) > 25, "the search finds what is logged"
    assert {"explained_share", "self_bleu", "replay_nll_nats_per_token"} <= set(found)
    assert not [f"{path}: {name}" for name, path in found.items() if not has_name(f"val/{name}")]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("val/facts/exact_match", "facts answered exactly (share)"),
        ("val/old/exact_match", "old facts: answered exactly (share)"),
        (
            "forgetting/new/first_20_visits_exact_match",
            "new facts: first 20 facts answered exactly (share)",
        ),
        ("forgetting/text/bits_per_byte_change", "text: change of: loss (bits per byte)"),
        ("val/structure/latents_of_2_agents", "structure: latents that matter to 2 agents (count)"),
        ("val/x/overall_ead_3", "x: different 3-grams against expectation (EAD), over all prompts"),
        ("reward/my_component", "score of my component (mean)"),
        (
            "memory/layer_20/ffn_share",
            "memory, layer 20: what the memory adds, of its FFN's output (share)",
        ),
        ("memory/layer_2/slots_read_share", "memory, layer 2: slots that were read (share)"),
    ],
)
def test_names_hold_set_quantity_and_unit(key, label):
    assert has_name(key)
    assert metric_label(key) == label


def test_an_unknown_key_stays_readable():
    assert not has_name("val/mine/queue_wait_seconds")
    assert metric_label("val/mine/queue_wait_seconds") == "mine: queue wait (s)"
    assert (quantity_of("odd").label, set_name("odd")) == ("odd", "")
