"""A search for molecules, ours and a plain one, in separate processes that wait for the clock.

The protocol of a connection, from the side of the process:

    receive Job        prepare the search
    send None          ready
    receive None       start
    send Outcome       finished
"""

# Shapes: B molecules of a step, T positions, V vocabulary

import resource
import tempfile
import time
import warnings
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from triptych.benchmarks.paired import most_resident_bytes
from triptych.benchmarks.plain_reward import PlainReward, drugs_task
from triptych.models.diversify.molecules.smiles_rnn import load_smiles_rnn

BATCH, SIGMA, LEARNING_RATE, MOST_TOKENS = 64, 64.0, 1e-3, 80


@dataclass(frozen=True)
class Job:
    """A search to be timed.

    Args:
        kind: The plain loop, or ours.
        prior: Folder of the exported prior.
        seed: Seed of the samples.
        num_calls: Number of oracle calls that ends the search.
        num_threads: Number of torch threads.
        num_workers: Number of additional scoring processes; only for ours.
        with_mara: Augment the rewards; only for ours.
    """

    kind: Literal["plain", "ours"]
    prior: str
    seed: int
    num_calls: int
    num_threads: int = 1
    num_workers: int = 0
    with_mara: bool = False


@dataclass(frozen=True)
class Outcome:
    """The results and costs of a search.

    Attributes:
        scores: Maps canonical SMILES to scores, in the order of the calls.
        cpu_s: CPU seconds, including scoring processes.
        resident_bytes: Peak resident memory of the process.
        samples: Number of sampled molecules.
    """

    scores: dict[str, float]
    cpu_s: float
    resident_bytes: int
    samples: int


class Searcher:
    """A process that runs several searches in turn and imports its modules once."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()

    def prepare(self, job: Job) -> None:
        """Load everything that a job needs."""
        self._connection.send(job)
        self._connection.recv()

    def begin(self) -> None:
        """Start the prepared search."""
        self._connection.send(None)

    def outcome(self) -> Outcome:
        """Wait for the end of the search and return its outcome."""
        outcome: Outcome = self._connection.recv()
        return outcome

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def run_together(searchers: list[Searcher], jobs: list[Job]) -> tuple[float, list[Outcome]]:
    """Run jobs in parallel, one per process; return the seconds until the last one ends."""
    used = searchers[: len(jobs)]
    for searcher, job in zip(used, jobs, strict=True):
        searcher.prepare(job)
    began = time.perf_counter()
    for searcher in used:
        searcher.begin()
    outcomes = [searcher.outcome() for searcher in used]
    return time.perf_counter() - began, outcomes


def _serve(connection: Connection) -> None:
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        with tempfile.TemporaryDirectory(prefix="oracle_throughput_") as folder:
            search = prepared(job, Path(folder))
            connection.send(None)
            connection.recv()
            outcome = finished(search)
        connection.send(outcome)


def prepared(job: Job, folder: Path) -> "OurSearch | PlainLoop":
    """Build the search of a job."""
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    return PlainLoop(job) if job.kind == "plain" else OurSearch(job, folder)


def finished(search: "OurSearch | PlainLoop") -> Outcome:
    """Run a search to its end and return its outcome."""
    before = _cpu_s()
    search.search()
    scores, samples = search.found()
    return Outcome(scores, _cpu_s() - before, most_resident_bytes(), samples)


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class OurSearch:
    """Our search as in a study: the Trainer, a ledger on disk, metrics of every step in a file."""

    def __init__(self, job: Job, folder: Path) -> None:
        from lightning.pytorch import Trainer, seed_everything

        from triptych.callbacks.diversify.molecules.stop_search import StopSearch
        from triptych.callbacks.tracking.local_metrics import LocalMetrics
        from triptych.datamodules.diversify.unprompted import Unprompted
        from triptych.lit_modules.diversify.molecules.molecule_optimization import (
            MoleculeOptimization,
        )
        from triptych.objectives.diversify.mara import Mara
        from triptych.objectives.rewards.molecules.oracle_reward import OracleReward

        warnings.filterwarnings("ignore")
        seed_everything(job.seed, verbose=False)
        self.reward = OracleReward(drugs_task(), job.num_calls, num_workers=job.num_workers)
        self.module = MoleculeOptimization(
            self.reward,
            job.prior,
            mara=Mara(threshold=0.75, scope="batch") if job.with_mara else None,
            sigma=SIGMA,
            num_samples=BATCH,
            max_new_tokens=MOST_TOKENS,
            learning_rate=LEARNING_RATE,
        )
        self.trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            max_steps=-1,
            max_epochs=-1,
            callbacks=[StopSearch(patience=1000)],
            logger=LocalMetrics(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.data = Unprompted()
        self.reward.objective.prepare()
        self.reward.pool.start()

    def search(self) -> None:
        """Search until the budget is spent, and end the scoring processes."""
        self.trainer.fit(self.module, self.data)

    def found(self) -> tuple[dict[str, float], int]:
        """Return the scores in the ledger and the number of samples."""
        scores = {call.smiles: call.score for call in self.reward.ledger.calls()}
        self.reward.close()
        return scores, self.module.generated_samples


class PlainLoop:
    """REINVENT in one process: the GRU of torch, molecules scored one by one.

    Each step samples 64 molecules until the last one ends, looks up or scores each, computes
    log-probabilities under agent and prior, and takes an Adam step on
    (log pi_prior + sigma R - log pi)^2.
    """

    def __init__(self, job: Job) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(
            job.prior, local_files_only=True, trust_remote_code=False
        )
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.agent, self.prior = PlainNetwork(job.prior), PlainNetwork(job.prior)
        assert self.agent.words is not None
        self.words = ["" if i in tokenizer.all_special_ids else word
                      for i, word in enumerate(self.agent.words)]  # fmt: skip
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=LEARNING_RATE)
        self.reward, self.num_calls = PlainReward(), job.num_calls
        self.scores: dict[str, float] = {}
        self.samples = 0

    def search(self) -> None:
        """Search until `num_calls` distinct molecules are scored."""
        while len(self.scores) < self.num_calls:
            rows = self.sample()
            texts = ["".join(self.words[token] for token in row) for row in rows]
            reward_B = torch.tensor([self.score(text) for text in texts])
            self.update(rows, reward_B)
            self.samples += len(rows)

    def found(self) -> tuple[dict[str, float], int]:
        """Return the scores in the order of the calls and the number of samples."""
        return self.scores, self.samples

    def score(self, text: str) -> float:
        """Score a molecule, or look up its score."""
        canonical = self.reward.canonical(text)
        if canonical is None:
            return 0.0
        if canonical not in self.scores and len(self.scores) < self.num_calls:
            self.scores[canonical] = self.reward(canonical)
        return self.scores.get(canonical, 0.0)

    @torch.no_grad()
    def sample(self) -> list[list[int]]:
        """Sample the token ids of 64 molecules, end tokens included."""
        ids_B = torch.full((BATCH,), self.start)
        ended_B = torch.zeros(BATCH, dtype=torch.bool)
        columns, state = [], None
        for _ in range(MOST_TOKENS):
            logits_BV, state = self.agent(ids_B[:, None], state)
            ids_B = torch.multinomial(logits_BV[:, 0].softmax(-1), 1)[:, 0]
            columns.append(torch.where(ended_B, -1, ids_B))
            ended_B |= ids_B == self.end
            if ended_B.all():
                break
        rows = torch.stack(columns, 1).tolist()
        return [[token for token in row if token >= 0] for row in rows]

    def update(self, rows: list[list[int]], reward_B: Tensor) -> None:
        """Take a step on the loss of REINVENT."""
        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask_BT = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        own_B = self.agent.log_prob(ids_BT, mask_BT, self.start)
        with torch.no_grad():
            prior_B = self.prior.log_prob(ids_BT, mask_BT, self.start)
        loss = (prior_B + SIGMA * reward_B - own_B).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class PlainNetwork(nn.Module):
    """Embedding, GRU and output layer of the exported prior as plain torch modules."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        made = load_smiles_rnn(folder)
        if made.config.cell != "gru":
            raise ValueError(f"{folder} contains an {made.config.cell}: give a prior with a GRU")
        config, self.words = made.config, made.vocabulary
        sizes = (config.embedding_size, config.hidden_size, config.num_layers)
        self.embedding, self.output = made.embedding, made.output
        self.rnn = nn.GRU(*sizes, batch_first=True)
        self.rnn.load_state_dict(made.rnn.state_dict())

    def forward(self, ids_BT: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute logits (B, T, V) and the last state."""
        states_BTH, state = self.rnn(self.embedding(ids_BT), state)
        return self.output(states_BTH), state

    def log_prob(self, ids_BT: Tensor, mask_BT: Tensor, start: int) -> Tensor:
        """Compute the log-probability of each row, in nats."""
        first_B1 = torch.full((len(ids_BT), 1), start)
        logits_BTV, _ = self(torch.cat([first_B1, ids_BT[:, :-1]], 1))
        found_BT: Tensor = logits_BTV.log_softmax(-1).gather(2, ids_BT[..., None])[..., 0]
        return (found_BT * mask_BT).sum(1)
