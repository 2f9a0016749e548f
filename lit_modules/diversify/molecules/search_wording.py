"""Words findings about policies in the terms of a search, which has sigma where they have beta."""

import re

_NUMBER = r"(\d[\d.]*(?:e[-+]?\d+)?)"
_VALUE = re.compile(rf"beta (=|is) {_NUMBER}(?<!\.)")
_BOUND = re.compile(rf"[Ss]et beta to {_NUMBER}(?<!\.) or above")


def in_terms_of_sigma(text: str) -> str:
    """Replace beta by sigma = 1 / beta in a finding.

    >>> in_terms_of_sigma("lost at the optimum of beta = 0.0078125. Set beta to 0.01 or above.")
    'lost at the optimum of sigma = 128. Set sigma to 100 or below.'
    >>> in_terms_of_sigma("MARA adds 2 (beta times 5 nats). Lower it, lower beta, or wait.")
    'MARA adds 2 (1 / sigma times 5 nats). Lower it, raise sigma, or wait.'
    """
    text = _BOUND.sub(lambda found: f"Set sigma to {_inverse(found[1])} or below", text)
    text = _VALUE.sub(lambda found: f"sigma {found[1]} {_inverse(found[2])}", text)
    text = text.replace("lower beta", "raise sigma").replace(
        "whatever beta is", "whatever sigma is"
    )
    return re.sub(r"\bbeta\b", "1 / sigma", text)


def _inverse(number: str) -> str:
    value = float(number)
    return f"{1 / value:.3g}" if value else "infinity"
