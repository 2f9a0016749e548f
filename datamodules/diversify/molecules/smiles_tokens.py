"""SMILES strings in pieces: an atom, a bond, a branch or a ring closure each.

The pattern is that of Schwaller et al. (2018): brackets are one token, Cl and Br are one token, and
so is a ring closure of two digits ("%12"). Nothing heavy is imported: processes that prepare
molecules start from here.
"""

import re
from collections.abc import Iterable

PATTERN = r"\[[^\]]+\]|Br|Cl|%\d\d|[BCNOPSFI]|[bcnops]|[()]|\.|=|#|\$|-|\+|\\|/|:|~|@|\?|>|\*|\d"
_TOKEN = re.compile(PATTERN)
# Other spellings of a molecule need these where its canonical one does not.
GRAMMAR = ["(", ")", *"123456789", "%10", "%11", "%12", "-", "=", "#"]


def split_smiles(smiles: str) -> list[str]:
    """Split a SMILES string into its tokens.

    Raises:
        ValueError: If a part of it is no token.

    >>> split_smiles("C[C@H](Cl)Br")
    ['C', '[C@H]', '(', 'Cl', ')', 'Br']
    >>> split_smiles("c1ccccc%12")
    ['c', '1', 'c', 'c', 'c', 'c', 'c', '%12']
    """
    tokens = _TOKEN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        rest = _TOKEN.sub(" ", smiles).split()
        raise ValueError(f"{smiles!r} holds {', '.join(map(repr, rest))}, which is no SMILES token")
    return tokens


def vocabulary_of(molecules: Iterable[str]) -> list[str]:
    """Collect the tokens that any spelling of these molecules may need, sorted.

    Written from another atom, a stereocentre may turn from @ to @@ and a bond from / to its mirror
    image; both are taken in.
    """
    tokens = {token for smiles in molecules for token in split_smiles(smiles)}
    for token in list(tokens):
        if token.startswith("[") and "@" in token:
            turned = token.replace("@@", "@") if "@@" in token else token.replace("@", "@@")
            tokens.add(turned)
    if tokens & {"/", "\\"}:
        tokens |= {"/", "\\"}
    return sorted(tokens | set(GRAMMAR))
