"""Augmentations: texts with the content of a chunk, from templates, the chunk's row or a model.

The templates are simple: a lead ("According to ...: ") and sentences in another order. They are
ours and do not replace Active Reading (2508.09494), where a large model writes 64 texts for each
chunk. For that, set a model with an `instruction`, or provide the texts in the rows.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt

from triptych.datamodules.batches.chunks import sentences
from triptych.datamodules.remember.rewriting import RewriterConfig, rewriter_fingerprint, rewritten

TITLED_LEADS = (
    "According to {title}: ",
    "About {title}: ",
    "From a text on {title}: ",
    "What is known of {title}: ",
)
LEADS = ("It is written: ", "Read this: ", "In a text one finds: ", "To say it again: ")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that fits the context.

    Attributes:
        id: The document's id, with "#2" and so on from the second chunk on.
        text: The text.
        title: The document's title, if it has one.
        augmentations: Texts with the same content, from the document's row.
    """

    id: str
    text: str
    title: str | None = None
    augmentations: tuple[str, ...] = ()


@dataclass(frozen=True)
class AugmentationsConfig:
    """Choice of the augmentations of a chunk.

    Args:
        source: "templates": leads and sentences in another order; "rows": the field
            `augmentations` of the documents' rows, which must then fit the context uncut; "model":
            the rewrites by `model`.
        num_augmentations: Maximum number of augmentations in one visit, beside the chunk itself,
            drawn anew in each pass; 0: the chunk alone.
        model: For "model": the model and its instruction.
    """

    source: Literal["templates", "rows", "model"] = "templates"
    num_augmentations: NonNegativeInt = 8
    model: RewriterConfig | None = None

    def __post_init__(self) -> None:
        if (self.source == "model") != (self.model is not None):
            raise ValueError(
                f"augmentations.source is {self.source!r}, but augmentations.model is "
                f"{'null' if self.model is None else 'set'}: for texts from a model, set source to "
                "model and model to such as {name: Qwen/Qwen3-0.6B}; else leave model out"
            )

    def fingerprint(self) -> str:
        """Hash the settings of the texts, without the rows."""
        model = rewriter_fingerprint(self.model) if self.model else None
        settings = [asdict(self) | {"model": model}]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


class Augmentations:
    """Draws the augmentations of chunks.

    Args:
        config: Choice of the augmentations.
        chunks: The chunks.
        cache_dir: Folder of a model's cached texts.
        seed: Seed of the draws.
    """

    def __init__(
        self, config: AugmentationsConfig, chunks: Sequence[Chunk], cache_dir: Path, seed: int
    ) -> None:
        self._config = config
        self._chunks = list(chunks)
        self._seed = seed
        self._given: list[list[str]] | None = None
        if config.source == "rows":
            self._given = [list(chunk.augmentations) for chunk in chunks]
        elif config.model is not None:
            written = rewritten([chunk.text for chunk in chunks], config.model, cache_dir)
            self._given = [[text for text in dict.fromkeys(texts) if text] for texts in written]

    def texts(self, index: int, pass_number: int) -> list[str]:
        """Return at most `num_augmentations` texts for chunk `index` in one pass."""
        rng = random.Random(f"{self._seed}/{pass_number}/{index}")
        most = self._config.num_augmentations
        if self._given is not None:
            given = self._given[index]
            return rng.sample(given, most) if most < len(given) else given
        return from_templates(self._chunks[index], most, rng)


def from_templates(chunk: Chunk, most: int, rng: random.Random) -> list[str]:
    """Draw different texts of a lead and the chunk, with its sentences in order or shuffled.

    A chunk of few sentences may give fewer than `most` texts.
    """
    leads = [lead.format(title=chunk.title) for lead in TITLED_LEADS] if chunk.title else LEADS
    parts = sentences(chunk.text)
    found: dict[str, None] = {chunk.text: None}
    for _ in range(4 * most):  # some draws repeat an earlier text
        if len(found) > most:
            break
        shuffled = " ".join(rng.sample(parts, len(parts)))
        body = rng.choice((chunk.text, shuffled))
        found[rng.choice(("", *leads)) + body] = None
    return list(found)[1:]


def longest_lead(title: str | None) -> str:
    """Return the longest lead of a document's chunks."""
    leads = [lead.format(title=title) for lead in TITLED_LEADS] if title else LEADS
    return max(leads, key=len)
