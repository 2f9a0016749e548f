"""A heatmap of how much each latent matters to each agent."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

# Shapes: K agents, Z latents


def draw_sharing(magnitude_KZ: Tensor, relevant_KZ: Tensor, names: Sequence[str]) -> Figure:
    """Draw the heatmap, and a bar chart of how many latents each number of agents shares.

    Latents are ordered by the number of agents that share them, then by which agents.

    Args:
        magnitude_KZ: Magnitude of each agent's part of each latent's column of the Jacobian.
        relevant_KZ: bool; the structure after thresholding, marked by a dot.
        names: The agents' names.
    """
    num_agents, num_latents = relevant_KZ.shape
    pattern = [tuple((~relevant_KZ[:, z]).int().tolist()) for z in range(num_latents)]
    order = sorted(range(num_latents), key=lambda z: (-int(relevant_KZ[:, z].sum()), pattern[z]))
    figure = Figure(
        figsize=(min(14.0, 3.5 + 0.16 * num_latents), 1.6 + 0.35 * num_agents),
        layout="constrained",
    )
    heat, bars = figure.subplots(1, 2, width_ratios=[5, 1])
    image = heat.imshow(magnitude_KZ[:, order], aspect="auto", cmap="magma_r", vmin=0)
    if num_latents <= 128:
        agents, places = relevant_KZ[:, order].nonzero(as_tuple=True)
        heat.scatter(places, agents, s=6, color="white", edgecolors="black", linewidths=0.4)
    heat.set_yticks(range(num_agents), list(names))
    heat.set(xlabel="latents, by how many agents share them", title="who shares what")
    figure.colorbar(image, ax=heat, label="RMS Jacobian")
    counts = torch.bincount(relevant_KZ.sum(0), minlength=num_agents + 1)
    bars.bar(range(num_agents + 1), counts, color="0.4")
    bars.set(xlabel="agents", ylabel="latents", title="agreement")
    bars.set_xticks(range(num_agents + 1))
    bars.spines[["top", "right"]].set_visible(False)
    return figure
