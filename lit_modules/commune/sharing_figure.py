"""A heatmap of how much each latent matters to each agent."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from triptych.metrics.display.figure_style import GREY, WIDTH, count_axis, styled

# Shapes: K agents, Z latents


@styled
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
    figure = Figure(figsize=(WIDTH, 1.9 + 0.35 * num_agents), layout="constrained")
    heat, bars = figure.subplots(1, 2, width_ratios=[5, 1])
    image = heat.imshow(magnitude_KZ[:, order].numpy(), aspect="auto", cmap="magma_r", vmin=0)
    if num_latents <= 128:
        agents, places = relevant_KZ[:, order].nonzero(as_tuple=True)
        dots = {"s": 14, "color": "white", "edgecolors": "black", "linewidths": 0.7}
        marked = "matters to the agent (above the threshold)"
        heat.scatter(places.numpy(), agents.numpy(), label=marked, **dots)
        heat.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    heat.set_yticks(range(num_agents), list(names))
    heat.set(xlabel="thoughts (latents), those that most agents share first")
    count_axis(heat)
    figure.colorbar(image, ax=heat, label="effect on the\nagent's state\n(RMS Jacobian)")
    counts = torch.bincount(relevant_KZ.sum(0), minlength=num_agents + 1)
    bars.bar(range(num_agents + 1), counts.numpy(), color=GREY)
    bars.set(xlabel="agents", ylabel="thoughts that matter to so many")
    bars.set_xticks(range(num_agents + 1))
    count_axis(bars, "y", 4)
    return figure
