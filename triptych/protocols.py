"""Protocols between modules, datamodules, callbacks and the command line.

A callback finds the members that it reads by `isinstance` on one of these protocols, never by the
class of a LightningModule. A class offers a protocol by having its members; it need not inherit
from it. `docs/architecture.md` lists all of them with their readers.

>>> class Talkative:
...     sample_rows = [{"prompt": "2 + 2 =", "output": "4"}]
>>> isinstance(Talkative(), ShowsSamples), isinstance(Talkative(), SummarizesRun)
(True, False)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import (
    Protocol,
    get_protocol_members,
    is_protocol,
    override,
    runtime_checkable,
)

if TYPE_CHECKING:
    from abc import ABCMeta as ProtocolMeta
    from pathlib import Path

    from lightning.pytorch import LightningModule
    from matplotlib.figure import Figure
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from triptych.objectives.diversify.experience import Experience
    from triptych.objectives.rewards.base import Reward
else:
    ProtocolMeta = type(Protocol)

#: `term(module, batch)` returns a scalar; its mean over ranks is added to the loss.
LossTerm: TypeAlias = "Callable[[LightningModule, Any], Tensor]"


class _ByName(ProtocolMeta):
    """Checks members by name, as `dir` lists them.

    Python 3.12 looks members up statically and so misses submodules, which torch keeps in a
    dictionary of the module. Python 3.11 evaluates properties, which may train a tokenizer.
    """

    @override
    def __instancecheck__(self, instance: object) -> bool:
        if not is_protocol(self):
            return super().__instancecheck__(instance)
        return get_protocol_members(self) <= set(dir(instance))


def missing(protocol: type, offered_by: object, needed_by: str) -> ValueError:
    """Word the error of a reader that cannot work without a protocol.

    Args:
        protocol: The protocol that is needed.
        offered_by: The object that does not offer it.
        needed_by: Name of the reader.

    >>> print(missing(HasExperience, object(), "AnchorTrace"))
    AnchorTrace needs triptych.protocols.HasExperience, but object has no `experience`
    """
    present = set(dir(offered_by))
    names = ", ".join(f"`{name}`" for name in sorted(get_protocol_members(protocol) - present))
    return ValueError(
        f"{needed_by} needs triptych.protocols.{protocol.__name__}, but "
        f"{type(offered_by).__name__} has no {names}"
    )


# -- of modules -----------------------------------------------------------------------------------


@runtime_checkable
class HoldsModel(Protocol, metaclass=_ByName):
    """A module around one model.

    `ExportModel` saves it, `SlotLedger` names its tables, and the callbacks of Remember that work
    on a language model need it to be a `PreTrainedModel`.
    """

    @property
    def model(self) -> nn.Module | None:
        """The model; None if there is nothing to export."""


@runtime_checkable
class Exports(HoldsModel, Protocol):
    """A module that exports other weights than its model holds, such as merged adapters.

    `ExportModel` reads it.
    """

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that `model.save_pretrained` writes."""


@runtime_checkable
class BoundsReplies(Protocol, metaclass=_ByName):
    """A module that samples replies of bounded length.

    `ExportModel` writes the bound into the exported `generation_config.json`.
    """

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens of the longest reply; None if it is unknown."""


@runtime_checkable
class StartsFrom(Protocol, metaclass=_ByName):
    """A module that may start from an exported folder.

    `SparseMemoryFinetuning` reads the background statistics in that folder.
    """

    @property
    def init_from(self) -> str | None:
        """The folder; None if the module starts from random weights."""


@runtime_checkable
class AddsLossTerms(Protocol, metaclass=_ByName):
    """A module that adds the terms of callbacks to its loss.

    `Replay`, `KLToBase` and `ElasticWeightConsolidation` append to the list in `setup`.
    """

    @property
    def loss_terms(self) -> list[LossTerm]:
        """The terms; the module calls each one for every training batch."""


@runtime_checkable
class ShowsSamples(Protocol, metaclass=_ByName):
    """A module that fills a table of samples while it validates.

    `SampleTable` writes it after each validation.
    """

    @property
    def sample_rows(self) -> list[dict[str, Any]]:
        """The rows of the last validation, each a dict of plain values."""


@runtime_checkable
class DrawsFigures(Protocol, metaclass=_ByName):
    """A module that draws figures of what it has found.

    `ModuleFigures` writes them when training ends.
    """

    def draw_figures(self) -> Mapping[str, Figure]:
        """Return figures by the names of their files; empty if there is nothing to draw."""


@runtime_checkable
class SummarizesRun(Protocol, metaclass=_ByName):
    """A module or a callback with rows for the table at the end of a run.

    `SummaryTable` prints them.
    """

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return pairs of name and value."""


@runtime_checkable
class DescribesParts(Protocol, metaclass=_ByName):
    """A module that describes parts of its model in the first lines of a run.

    `RunHeader` prints them.
    """

    def described_parts(self) -> list[tuple[str, str]]:
        """Return pairs of name and description."""


@runtime_checkable
class HasHeadline(Protocol, metaclass=_ByName):
    """A module that names the metrics which tell whether a run has done what it promises.

    `SummaryTable` and `Progress` show them first.
    """

    @property
    def headline_metrics(self) -> Sequence[str]:
        """Patterns of log keys, as `fnmatch` reads them, the most important one first."""


@runtime_checkable
class ReplacesMetrics(SummarizesRun, Protocol):
    """A module or a callback whose summary rows stand in for logged metrics.

    `SummaryTable` leaves these metrics out.
    """

    @property
    def summarized_metrics(self) -> tuple[str, ...]:
        """Prefixes of the log keys that the summary rows replace."""


@runtime_checkable
class HasExperience(Protocol, metaclass=_ByName):
    """A policy optimisation that keeps its last training batch.

    `AnchorTrace` reads it after each training step.
    """

    @property
    def experience(self) -> Experience | None:
        """Samples, rewards and anchors of the last step; None before the first."""


@runtime_checkable
class CountsModes(Protocol, metaclass=_ByName):
    """A module that counts known answers while it validates.

    `ModeCoverageFigure` draws the counts.
    """

    @property
    def mode_counts(self) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
        """Validation set -> category -> answer -> count, on this rank."""


@runtime_checkable
class MeasuresStart(Protocol, metaclass=_ByName):
    """A module that validates before its first step.

    `RewardDiversityFront` starts its path there; `SummaryTable` shows them before the final ones.
    """

    @property
    def start_numbers(self) -> dict[str, float]:
        """Log key -> value before the first step; empty if it was not measured."""


@runtime_checkable
class HasReward(Protocol, metaclass=_ByName):
    """A module that maximises a reward.

    `MoleculeReport` needs it to be an `OracleReward` and reads its ledger.
    """

    @property
    def reward(self) -> Reward:
        """The reward."""


@runtime_checkable
class CountsOracleCalls(HasReward, Protocol):
    """A search with an `OracleReward`.

    `StopSearch` reads the counts, which are equal on all ranks.
    """

    @property
    def oracle_calls(self) -> int:
        """Calls of the oracle so far."""

    @property
    def generated_samples(self) -> int:
        """Molecules sampled so far, repeated ones included."""


# -- of models and tokenizers ---------------------------------------------------------------------


@runtime_checkable
class SavesPretrained(Protocol, metaclass=_ByName):
    """A model or a tokenizer that writes itself into a folder, as those of `transformers` do.

    `ExportModel` calls it.
    """

    def save_pretrained(self, folder: Any, /, **options: Any) -> Any:
        """Write all that is needed to load it again; `state_dict` replaces a model's weights."""


# -- of callbacks ---------------------------------------------------------------------------------


@runtime_checkable
class AddsToExport(Protocol, metaclass=_ByName):
    """A callback with files that belong to the exported model.

    `ExportModel` calls it on the first process each time it exports, before the folder is in place.
    """

    def add_to_export(self, folder: Path) -> None:
        """Write files of this moment's model into the folder."""


# -- of datamodules -------------------------------------------------------------------------------


@runtime_checkable
class HasTokenizer(Protocol, metaclass=_ByName):
    """A datamodule of texts, or a module that samples texts without data.

    `ExportModel` saves the tokenizer; the callbacks of Remember read with it.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer; None if the models bring their own."""


@runtime_checkable
class HasChatTemplate(Protocol, metaclass=_ByName):
    """A datamodule that asks its model in a fixed form.

    `ExportModel` adds the form to the exported tokenizer.
    """

    @property
    def chat_template(self) -> str | None:
        """The form as a chat template; None if the data ask nothing."""


@runtime_checkable
class HasPrompts(Protocol, metaclass=_ByName):
    """A datamodule that knows all prompts before training.

    `PolicyOptimization` checks their lengths before the first step.
    """

    @property
    def prompts(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Rows with `prompt_ids`, by the name of their set."""


@runtime_checkable
class HasVocabulary(Protocol, metaclass=_ByName):
    """A datamodule of token ids.

    The command line passes the size to the module's argument `vocab_size`.
    """

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None if the models bring their own tokenizer."""


@runtime_checkable
class HasContextLength(Protocol, metaclass=_ByName):
    """A datamodule of rows of bounded length.

    `ReplayedBatches` and `ForgettingEvaluation` compare it with the model's positions.
    """

    @property
    def context_length(self) -> int:
        """Tokens of the longest row."""


@runtime_checkable
class HasFingerprint(Protocol, metaclass=_ByName):
    """A datamodule that identifies its training data.

    The run's summary and its tracker keep the fingerprint.
    """

    def fingerprint(self) -> str:
        """Return a hash of all that decides the training rows."""


@runtime_checkable
class LeavesRowsOut(Protocol, metaclass=_ByName):
    """A datamodule that filters its rows.

    The run's summary says how many rows each filter left out.
    """

    @property
    def left_out(self) -> Mapping[str, int]:
        """Name of a filter -> number of rows."""


@runtime_checkable
class TeachesFacts(Protocol, metaclass=_ByName):
    """A datamodule whose batches name the facts that they teach (`fact_ids`).

    `SlotLedger` writes down what the facts say.
    """

    @property
    def facts(self) -> Sequence[Any]:
        """The facts: dataclasses with `id`, `question`, `answers` and `statement`."""


@runtime_checkable
class NamesSources(Protocol, metaclass=_ByName):
    """A datamodule of several sources with `source_ids` in its batches.

    `NanGuard` names the sources of a batch with a broken loss.
    """

    @property
    def source_names(self) -> Sequence[str]:
        """Name of each source id."""
