"""The base of all probes: rows that are tokenised once, and the scoring of documents."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from torchmetrics import Metric
from transformers import PreTrainedModel

from triptych.callbacks.trainer_parts import is_first_rank
from triptych.datamodules.batches.length_batches import LengthBatch, length_batches
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.packing import Document
from triptych.datamodules.batches.prompted_documents import OnLongRow
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.models.long_loop import with_progress
from triptych.objectives.batch_nll import batch_nll
from triptych.objectives.teacher_forcing import teacher_forced

Role = Literal["retained", "learned"]
if TYPE_CHECKING:
    NumRows = int | Literal["auto"] | None
else:
    NumRows = PositiveInt | Literal["auto"] | None
#: Parameters of a model that reads the whole automatic number of rows on a CPU.
SMALL_ON_CPU = 20_000_000
#: The automatic number of rows is at least this: fewer say little.
FEWEST_ROWS = 50


@dataclass(frozen=True)
class ProbeSetting:
    """The run in which a probe is used.

    Args:
        row_format: The run's tokenizer, and the longest row that the model reads.
        shard: This process's part of the rows.
        datamodule: The run's training data.
        parameters_on_cpu: Number of parameters that a CPU computes with for each token; 0 on an
            accelerator. It decides on the automatic number of rows.
    """

    row_format: RowFormat
    shard: Shard
    datamodule: Any = None
    parameters_on_cpu: int = 0


class DocumentScore(NamedTuple):
    """The model's score of a document.

    Attributes:
        nll_nats: Negative log-likelihood of its labelled tokens together.
        num_tokens: Number of these tokens.
        num_bytes: UTF-8 bytes that they stand for.
        is_greedy: Whether greedy decoding would write them; None if this was not computed.
    """

    nll_nats: float
    num_tokens: int
    num_bytes: int
    is_greedy: bool | None = None


class Probe(ABC):
    """A test of a language model on fixed rows.

    `prepare` reads and tokenises the rows once; `measure` runs a model over them any number of
    times. Rows are split among processes, and the numbers are those of all rows together.
    `ForgettingEvaluation` puts the model into eval mode and disables its records.

    A subclass names its main number in `headline` and says whether more is better. Budgets and the
    table at the end use that number. It passes the arguments below on as `**kwargs`.

    Args:
        role: "retained" if the probe measures forgetting, "learned" if it measures learning.
        num_rows: Largest number of rows used, drawn by `seed`; null: all; "auto", where a probe
            has it as default: as many as the probe says, and on a CPU fewer of a large model.
        seed: Draws the rows, independently of the seed of training.
        data_dir: Folder of relative paths; null: the environment's TRIPTYCH_DATA, or ./data.
        on_long_row: Treatment of a row longer than the model's context: "error", "cut" (removes the
            beginning of its prompt) or "skip".
        tokens_per_batch: Largest number of tokens in a batch, padding included.

    Attributes:
        headline: Name of the main number among those that `measure` returns.
        higher_is_better: Whether a higher value is better; if so, it is a share in [0, 1].
        shown: The numbers that the table at the end shows, the main one first.
        num_rows_used: Rows used on all processes together; known after `prepare`.
        num_rows_left_out: Rows left out because they were too long.
        groups: Name of each number that scores a group of visits -> number of visits after which
            the group has been learned; empty for most probes.
    """

    headline: str
    higher_is_better: bool = True
    #: Rows that "auto" stands for, where the machine is fast enough.
    auto_rows: int = 500

    def __init__(
        self,
        role: Role = "retained",
        num_rows: NumRows = None,
        seed: int = 0,
        data_dir: str | None = None,
        on_long_row: OnLongRow = "error",
        tokens_per_batch: PositiveInt = 4096,
    ) -> None:
        self.role = role
        self.num_rows: NumRows = num_rows
        self.seed = seed
        self.data_dir = data_dir
        self.on_long_row: OnLongRow = on_long_row
        self.tokens_per_batch = tokens_per_batch
        self.num_rows_used = self.num_rows_left_out = 0
        self.groups: dict[str, int] = {}

    @property
    def shown(self) -> tuple[str, ...]:
        """The numbers that the table at the end shows, the main one first."""
        return (self.headline,)

    def most_rows(self, setting: ProbeSetting) -> int | None:
        """Return the largest number of rows to draw; None: all.

        >>> from triptych.callbacks.remember.probes.closed_book import ClosedBook
        >>> setting = ProbeSetting(None, None, parameters_on_cpu=135_000_000)
        >>> ClosedBook().most_rows(setting), ClosedBook(num_rows=300).most_rows(setting)
        (74, 300)
        """
        if self.num_rows != "auto":
            return self.num_rows
        return automatic_number(self.auto_rows, setting)

    @abstractmethod
    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the rows.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a row is malformed (file, line and field are named) or too long, or there
                is none.
        """

    @abstractmethod
    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Run a model over the rows; every process must call it.

        Args:
            model: The model, in eval mode, without gradients.
            limit_batches: Largest number of batches on each process; None: all.

        Returns:
            The numbers by name, equal on all processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know of earlier measurements; mostly nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: B027 (optional)
        """Restore what `state_dict` returned."""


def automatic_number(wanted: int, setting: ProbeSetting) -> int:
    """Return a number of rows: the wanted one, and on a CPU fewer of a large model."""
    ratio = SMALL_ON_CPU / max(setting.parameters_on_cpu, SMALL_ON_CPU)
    return min(wanted, max(FEWEST_ROWS, int(wanted * ratio)))


class DocumentScorer:
    """Documents in batches of similar length, to be scored any number of times.

    Args:
        documents: The documents; their labelled tokens are scored.
        item_of: Item of each document; documents of one item stay on one process.
        setting: The run in which they are scored.
        tokens_per_batch: Largest number of tokens in a batch, padding included.
    """

    def __init__(
        self,
        documents: list[Document],
        item_of: list[int],
        setting: ProbeSetting,
        tokens_per_batch: int,
    ) -> None:
        self._documents = documents
        self._row_format = setting.row_format
        lengths = [len(document) for document in documents]
        self._batches = length_batches(lengths, item_of, tokens_per_batch, setting.shard)

    def score(
        self, model: PreTrainedModel, limit_batches: int | None = None, greedy: bool = False
    ) -> dict[int, DocumentScore]:
        """Score this process's documents.

        Args:
            model: The model.
            limit_batches: Largest number of batches; None: all.
            greedy: Whether to find the documents that greedy decoding would write.

        Returns:
            The scores by document index.
        """
        scores: dict[int, DocumentScore] = {}
        batches = self._batches[:limit_batches]
        for planned in with_progress(
            batches, "batches of a probe", len(batches), is_first_rank(), False
        ):
            found = self._score_batch(model, planned, greedy)
            if planned.counts:
                scores |= found
        return scores

    def _score_batch(
        self, model: PreTrainedModel, planned: LengthBatch, greedy: bool
    ) -> dict[int, DocumentScore]:
        documents = [self._documents[row] for row in planned.rows]
        batch = {
            name: tensor.to(model.device)
            for name, tensor in self._row_format.collate_padded(documents).items()
        }
        if greedy:
            nll, is_greedy_B = teacher_forced(model, batch)
            is_greedy: list[bool | None] = is_greedy_B.tolist()
        else:
            nll = batch_nll(model, batch)
            is_greedy = [None] * len(documents)
        columns = (
            nll.nats.double().sum(1).tolist(),
            nll.keep_mask.sum(1).tolist(),
            (batch["num_bytes"][:, 1:] * nll.keep_mask).sum(1).tolist(),
            is_greedy,
        )
        rows = zip(planned.rows, *columns, strict=True)
        return {row: DocumentScore(*values) for row, *values in rows}


def on_device(metric: Metric, model: PreTrainedModel) -> Any:
    """Move a new metric to the model's device, where processes can reduce it."""
    device: torch.device = model.device
    return metric.to(device)


def with_context(setting: ProbeSetting, context_length: int) -> ProbeSetting:
    """Limit the longest row to a context length."""
    shorter = min(context_length, setting.row_format.context_length)
    return replace(setting, row_format=replace(setting.row_format, context_length=shorter))
