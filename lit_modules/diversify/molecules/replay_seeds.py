"""What a search remembers that it has not sampled: the user's own molecules, and new spellings."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from triptych.datamodules.sources.record_files import BadRowError, file_rows
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.molecules.smiles_policy import SmilesPolicy
from triptych.models.diversify.molecules.spelled_smiles import respelled, rollout_of, token_ids
from triptych.models.diversify.rollout import Rollout
from triptych.models.seeded_generator import seeded_generator
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay

if TYPE_CHECKING:
    from triptych.lit_modules.diversify.molecules.molecule_optimization import MoleculeOptimization

# Shapes: B completions, R spellings

_FOR_SPELLINGS = 2**31 + 2
_MOST_NAMED = 10


def fill_with_seeds(module: "MoleculeOptimization", replay: ExperienceReplay) -> None:
    """Score the molecules of `replay.seeds` and remember them.

    Those that do not fit are named in a warning: strings that are no molecule, and molecules that
    the policy cannot spell in its length.

    Raises:
        ValueError: if no molecule fits, or a row has no SMILES.
    """
    assert replay.seeds is not None
    policy = _policy(module)
    assert policy.tokenizer is not None
    kept: dict[str, list[int]] = {}
    unfit = []
    for text in _read(Path(replay.seeds)):
        smiles = canonical_smiles(text)
        limit = policy.max_new_tokens
        ids = None if smiles is None else token_ids(smiles, policy.tokenizer, limit)
        if smiles is None or ids is None:
            unfit.append(f"{text} ({'no molecule' if smiles is None else 'no spelling'})")
        else:
            kept[smiles] = ids
    if unfit:
        more = f" and {len(unfit) - _MOST_NAMED:,} more" if len(unfit) > _MOST_NAMED else ""
        rank_zero_warn(
            f"{len(unfit):,} molecules of replay.seeds do not fit and are left out: "
            f"{', '.join(unfit[:_MOST_NAMED])}{more}. No spelling: they have tokens that the "
            f"prior does not know, or more than {policy.max_new_tokens - 1} (max_new_tokens)"
        )
    if not kept:
        raise ValueError(
            f"no molecule of replay.seeds {replay.seeds} fits the prior: give others, fine-tune a "
            "prior that knows their tokens, or set seeds to null"
        )
    bos: int = policy.tokenizer.bos_token_id
    rollout = rollout_of(list(kept), list(kept.values()), bos, module.device)
    scores = module.scores_of(rollout)
    replay.add(rollout, scores.reward_B)
    rank_zero_info(
        f"replay begins with {len(replay):,} of {len(kept):,} molecules of {replay.seeds}; "
        f"{module.oracle_calls:,} oracle calls"
    )


def respelled_for(
    module: "MoleculeOptimization", rollout: Rollout, num_spellings: int, step: int
) -> tuple[Rollout, Tensor]:
    """Spell remembered molecules at random; the draw follows from seed, step and rank.

    Returns:
        The spellings, and for each its row in `rollout`, int64 (R,).
    """
    policy = _policy(module)
    assert policy.tokenizer is not None
    rank = module.trainer.global_rank
    generator = seeded_generator(torch.device("cpu"), module._seed, step, rank, _FOR_SPELLINGS)
    return respelled(rollout, policy.tokenizer, policy.max_new_tokens, num_spellings, generator)


def _policy(module: "MoleculeOptimization") -> SmilesPolicy | CausalLMPolicy:
    policy = module.policy
    assert isinstance(policy, SmilesPolicy | CausalLMPolicy)
    return policy


def _read(path: Path) -> list[str]:
    texts = []
    for row in file_rows(path, txt_lines="smiles"):
        if isinstance(row, BadRowError):
            raise row
        if not isinstance(row.values.get("smiles"), str):
            raise ValueError(f"{row.place}: no field smiles: name the column of SMILES so")
        texts.append(row.values["smiles"])
    return texts
