"""Tokens of SMILES strings: an atom, a bond, a branch or a ring closure each.

The pattern is that of Schwaller et al. (2018): a bracket atom is one token, and so are Cl, Br and a
ring closure of two digits ("%12"). This module imports nothing heavy, since the processes that
prepare molecules import it.
"""

import re
from collections.abc import Iterable

PATTERN = r"\[[^\]]+\]|Br|Cl|%\d\d|[BCNOPSFI]|[bcnops]|[()]|\.|=|#|\$|-|\+|\\|/|:|~|@|\?|>|\*|\d"
_TOKEN = re.compile(PATTERN)
# Tokens that other spellings of a molecule may need.
GRAMMAR = ["(", ")", *"123456789", "%10", "%11", "%12", "-", "=", "#"]


def split_smiles(smiles: str) -> list[str]:
    """Split a SMILES string into its tokens.

    Raises:
        ValueError: If a part is no token.

    >>> split_smiles("C[C@H](Cl)Br")
    ['C', '[C@H]', '(', 'Cl', ')', 'Br']
    >>> split_smiles("c1ccccc%12")
    ['c', '1', 'c', 'c', 'c', 'c', 'c', '%12']
    """
    tokens = _TOKEN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        rest = _TOKEN.sub(" ", smiles).split()
        raise ValueError(
            f"{smiles!r} contains {', '.join(map(repr, rest))}, which is no SMILES token"
        )
    return tokens


def vocabulary_of(molecules: Iterable[str]) -> list[str]:
    """Collect the tokens that any spelling of these molecules may need, sorted.

    From another atom, a stereocentre may be written with @@ for @, and a bond with the mirrored
    slash: both forms are added.
    """
    tokens = {token for smiles in molecules for token in split_smiles(smiles)}
    for token in list(tokens):
        if token.startswith("[") and "@" in token:
            turned = token.replace("@@", "@") if "@@" in token else token.replace("@", "@@")
            tokens.add(turned)
    if tokens & {"/", "\\"}:
        tokens |= {"/", "\\"}
    return sorted(tokens | set(GRAMMAR))
