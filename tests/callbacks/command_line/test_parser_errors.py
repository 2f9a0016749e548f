"""The parser's errors in one sentence, from real parsers."""

from argparse import ArgumentError

import pytest
from jsonargparse import ArgumentParser

from triptych.callbacks.command_line.parser_errors import explain
from triptych.callbacks.diversify.stop_on_collapse import StopOnCollapse
from triptych.callbacks.remember.forgetting.forgetting_budget import ForgettingBudget
from triptych.callbacks.remember.ledger.slot_ledger import SlotLedger
from triptych.callbacks.remember.probes.base import Probe
from triptych.callbacks.remember.probes.fact_recall import FactRecall
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.callbacks.run.checkpoint import Checkpoint


def explained(kind: type, *words: str, subclass: type | None = None) -> str:
    parser = ArgumentParser(exit_on_error=False)
    if subclass is None:
        parser.add_class_arguments(kind, "it")
        given = []
    else:
        parser.add_argument("--it", type=kind)
        given = [f"--it={subclass.__module__}.{subclass.__qualname__}"]
    with pytest.raises(ArgumentError) as error:
        parser.parse_args([*given, *(f"--it.{word}" for word in words)])
    return explain(str(error.value))


@pytest.mark.parametrize(
    ("kind", "word", "message"),
    [
        (Checkpoint, "every_n_train_steps=0", "expected a whole number above 0 or null, got 0"),
        (Checkpoint, "minutes_between=soon", "expected a number above 0 or null, got 'soon'"),
        (ForgettingBudget, "max_drop=-1", "expected a number of at least 0 or null, got -1"),
        (SlotLedger, "warn_on_overlap=2", "expected a number from 0 to 1 or null, got 2"),
        (StopOnCollapse, "patience=0", "expected a whole number above 0, got 0"),
        (StopOnCollapse, "every=epoch", "expected 'step' or 'validation', got 'epoch'"),
        (FactRecall, "max_new_tokens=0", "expected a whole number above 0 or null, got 0"),
        (FactRecall, "role=both", "expected 'retained' or 'learned', got 'both'"),
        (FactRecall, "scoring=guess", "expected 'generate' or 'teacher_forced', got 'guess'"),
        (FactRecall, "num_rows=0", "expected a whole number above 0, 'auto' or null, got 0"),
    ],
)
def test_ranges_and_choices_are_the_parsers(kind, word, message):
    assert explained(kind, word) == f"it.{word.partition('=')[0]}: {message}"


def test_options_of_base_classes_are_known():
    """A probe passes them on as `**kwargs`; one that it sets itself is no option of it."""
    assert "did you mean num_rows?" in explained(Probe, "num_row=3", subclass=FactRecall)
    said = explained(Probe, "on_long_row=cut", subclass=TextPerplexity)
    assert "TextPerplexity takes source, context_length, num_windows, format, role," in said
    assert "kwargs" not in said
