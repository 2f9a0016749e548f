"""The figures of a report."""

from collections.abc import Collection
from pathlib import Path

from triptych.callbacks.report.page import Block, data_uri

#: Bytes of all figures together; a page of more than 2 MB is slow to open and to send.
MOST_BYTES = 1_300_000

#: File name -> caption.
CAPTIONS = {
    "learning_curves": "Validation and training over completed optimizer steps",
    "mode_coverage": "How often each known answer was given",
    "reward_diversity_front": "Reward against diversity; a ring: no validation is better in both",
    "anchors": "Anchors of MARA: how often they change, and their reward",
    "oracle_calls": "Scores and hits over the calls of the oracle",
    "properties": "Properties of the first calls, the last calls and the hits",
    "chemical_space": "Map of the molecules, coloured by the number of the call",
    "best_molecules": "The best molecules",
    "diverse_molecules": "The hits that differ most from each other",
    "forgetting": "What the model learned and what it retained",
    "sharing": "Which agents share which thoughts",
}


def figure_blocks(folder: Path, without: Collection[str] = ()) -> list[Block]:
    """Return the PNG files of a folder with captions.

    Figures that would make the page too large are named, not embedded.

    Args:
        folder: Folder of the figures, which may be missing.
        without: Names of figures to leave out, without suffix.
    """
    blocks: list[Block] = []
    left_out: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.png")):
        if path.stem in without:
            continue
        size += path.stat().st_size
        if size > MOST_BYTES:
            left_out.append(f"{folder.name}/{path.name}")
            continue
        caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
        blocks.append(Block(title=caption, image=data_uri(path)))
    if left_out:
        blocks.append(Block(text=f"Too large for this page: {', '.join(left_out)}"))
    return blocks
