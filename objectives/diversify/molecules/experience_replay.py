"""Replay of the best molecules of a run.

Like REINVENT's inception (Blaschke et al. 2020): a memory holds the molecules with the highest
rewards, each once. A few of them join every update, drawn without replacement in proportion to
their reward. The loss must be valid for samples of another policy; DAP is.
"""

# Shapes: B completions, R drawn rows, T completion positions

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.rollout import Rollout


@dataclass(frozen=True)
class Remembered:
    """One molecule as it was sampled.

    Attributes:
        text: The sampled SMILES.
        reward: The scored reward, before any penalty.
        prompt_ids: The prompt: the start token.
        token_ids: The sampled tokens.
        finished: Whether they contain the end token.
        log_prob: Log-probability under the policy that sampled it, in nats.
    """

    text: str
    reward: float
    prompt_ids: list[int]
    token_ids: list[int]
    finished: bool
    log_prob: float


class ExperienceReplay:
    """A memory of the best molecules; different SMILES of a molecule count once.

    Args:
        size: Maximum number of molecules.
        num_draws: Molecules that join an update; fewer while the memory holds fewer.
        seeds: File of molecules that the memory begins with, such as known actives (.smi, .csv,
            ...; REINVENT's inception). They are scored, which costs oracle calls, before the first
            step. Those that the policy cannot spell are named and left out.
        num_spellings: Random spellings in which each drawn molecule joins an update (Saturn's
            augmented memory); 0: as it was sampled.

    Raises:
        ValueError: if a number is out of range.

    Deviation of `num_spellings`: Saturn makes an update of its own for each round of spellings, of
    the whole memory; here the spellings of the drawn molecules join the update of the step.
    """

    one_process = "keeps one memory"

    def __init__(
        self,
        size: int = 100,
        num_draws: int = 10,
        seeds: str | None = None,
        num_spellings: int = 0,
    ) -> None:
        if size < 1 or num_draws < 1 or num_spellings < 0:
            raise ValueError(
                f"replay has size {size}, num_draws {num_draws} and num_spellings {num_spellings}: "
                "set the first two to at least 1 and the last to at least 0, or replay to null"
            )
        if seeds is not None and not Path(seeds).is_file():
            raise FileNotFoundError(f"replay.seeds: there is no file {seeds}")
        self.size = size
        self.num_draws = num_draws
        self.seeds = seeds
        self.num_spellings = num_spellings
        #: Canonical SMILES -> its first sample, best first.
        self.memory: dict[str, Remembered] = {}

    def __len__(self) -> int:
        return len(self.memory)

    def add(self, rollout: Rollout, reward_B: Tensor) -> None:
        """Add molecules with a reward above 0; known molecules stay unchanged."""
        found = dict(self.memory)
        for row, reward in enumerate(reward_B.tolist()):
            key = canonical_smiles(rollout.texts[row]) if reward > 0 else None
            if key is None or key in found:
                continue
            found[key] = Remembered(
                text=rollout.texts[row],
                reward=reward,
                prompt_ids=rollout.prompt_ids_BP[row][rollout.prompt_mask_BP[row]].tolist(),
                token_ids=rollout.token_ids_BT[row][rollout.token_mask_BT[row]].tolist(),
                finished=bool(rollout.finished_B[row]),
                log_prob=float(rollout.log_prob_B[row]),
            )
        best = sorted(found.items(), key=lambda item: -item[1].reward)  # stable: older first
        self.memory = dict(best[: self.size])

    def rescore(self, scores_of: Callable[[Sequence[str]], Tensor]) -> None:
        """Score all molecules anew, as a search with another objective needs.

        Args:
            scores_of: SMILES -> their rewards. Molecules with a reward of 0 or nan are forgotten.
        """
        if not self.memory:
            return
        rewards = scores_of([each.text for each in self.memory.values()]).tolist()
        pairs = zip(self.memory.items(), rewards, strict=True)
        found = {key: replace(each, reward=reward) for (key, each), reward in pairs if reward > 0}
        self.memory = dict(sorted(found.items(), key=lambda item: -item[1].reward))

    def draw(
        self, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> tuple[Rollout, Tensor] | None:
        """Draw molecules from the memory, in proportion to rewards; None while it is empty.

        Args:
            generator: Source of randomness, on any device.
            device: Device of the returned tensors.

        Returns:
            The molecules as they were sampled, and their rewards, (R,).
        """
        known = list(self.memory.values())
        if not known:
            return None
        weights = torch.tensor(
            [each.reward for each in known], device=generator.device, dtype=torch.float32
        )
        count = min(self.num_draws, len(known))
        places = torch.multinomial(weights, count, generator=generator).tolist()
        drawn = [known[place] for place in places]
        reward_R = torch.tensor([each.reward for each in drawn], device=device, dtype=torch.float32)
        return _rollout(drawn, device), reward_R

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, as plain values."""
        return {"memory": {key: asdict(each) for key, each in self.memory.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the memory."""
        self.memory = {key: Remembered(**each) for key, each in state["memory"].items()}


def _rollout(drawn: Sequence[Remembered], device: torch.device | str) -> Rollout:
    prompt_ids, prompt_mask = _padded([each.prompt_ids for each in drawn], device)
    token_ids, token_mask = _padded([each.token_ids for each in drawn], device)
    return Rollout(
        prompts=[""] * len(drawn),
        texts=[each.text for each in drawn],
        group_B=torch.zeros(len(drawn), dtype=torch.int64, device=device),
        prompt_ids_BP=prompt_ids,
        prompt_mask_BP=prompt_mask,
        token_ids_BT=token_ids,
        token_mask_BT=token_mask,
        finished_B=torch.tensor([each.finished for each in drawn], device=device, dtype=torch.bool),
        log_prob_B=torch.tensor(
            [each.log_prob for each in drawn], device=device, dtype=torch.float32
        ),
    )


def _padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return ids and mask, padded at the end with token 0, which is masked."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64, device=device)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = True
    return ids, mask
