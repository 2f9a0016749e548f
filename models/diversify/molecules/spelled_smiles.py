"""Given molecules as rollouts: spelled with a policy's tokens, canonically or at random."""

# Shapes: B completions, R spellings, T completion positions

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.models.diversify.rollout import Rollout


def token_ids(
    smiles: str, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> list[int] | None:
    """Encode a SMILES string, with its end token.

    Returns:
        The ids; None if the tokenizer does not know a token, or the end token would not fit.
    """
    ids: list[int] = tokenizer(smiles, add_special_tokens=False)["input_ids"]
    spelled = str(tokenizer.decode(ids)).replace(" ", "")
    known = spelled == smiles and tokenizer.unk_token_id not in ids
    eos: int = tokenizer.eos_token_id
    return [*ids, eos] if known and len(ids) < max_new_tokens else None


def random_spelling(smiles: str, generator: torch.Generator) -> str:
    """Spell a molecule from another atom and in another direction; the draw is the generator's."""
    from rdkit import Chem

    molecule = read_molecule(smiles)
    if molecule is None:
        return smiles
    device = generator.device
    seed = int(torch.randint(1, 2**31 - 1, (1,), generator=generator, device=device))
    (spelled,) = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)
    text: str = spelled
    return text


def rollout_of(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    bos_token_id: int,
    device: torch.device | str = "cpu",
) -> Rollout:
    """Make a rollout of given token ids, with log-probabilities of 0.

    Args:
        texts: The molecules as they are spelled.
        ids: Their token ids, end token included.
        bos_token_id: The start token.
        device: Device of the tensors.
    """
    longest = max(len(row) for row in ids)
    tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros(len(ids), longest, dtype=torch.bool)
    for number, row in enumerate(ids):
        tokens[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = True
    start = torch.full((len(ids), 1), bos_token_id, dtype=torch.int64, device=device)
    return Rollout(
        prompts=[""] * len(ids),
        texts=list(texts),
        group_B=torch.zeros(len(ids), dtype=torch.int64, device=device),
        prompt_ids_BP=start,
        prompt_mask_BP=torch.ones_like(start, dtype=torch.bool),
        token_ids_BT=tokens.to(device),
        token_mask_BT=mask.to(device),
        finished_B=torch.ones(len(ids), dtype=torch.bool, device=device),
        log_prob_B=torch.zeros(len(ids), dtype=torch.float32, device=device),
    )


def respelled(
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    num_spellings: int,
    generator: torch.Generator,
) -> tuple[Rollout, Tensor]:
    """Spell every molecule of a rollout at random, several times.

    A spelling that the tokenizer does not know or that is too long is replaced by the sampled one.

    Args:
        rollout: Molecules of a policy.
        tokenizer: The policy's.
        max_new_tokens: Longest spelling, end token included.
        num_spellings: Spellings of each molecule.
        generator: Source of the spellings.

    Returns:
        The spellings, and for each its row in `rollout`, int64 (R,).
    """
    rows, texts, ids = [], [], []
    for row, text in enumerate(rollout.texts):
        sampled = rollout.token_ids_BT[row][rollout.token_mask_BT[row]].tolist()
        for _ in range(num_spellings):
            spelled = random_spelling(text, generator)
            encoded = token_ids(spelled, tokenizer, max_new_tokens)
            rows.append(row)
            texts.append(text if encoded is None else spelled)
            ids.append(sampled if encoded is None else encoded)
    device = rollout.token_ids_BT.device
    bos: int = tokenizer.bos_token_id
    rows_R = torch.tensor(rows, dtype=torch.int64, device=device)
    return rollout_of(texts, ids, bos, device), rows_R
