"""Do thoughts carry as much information as text, and no private information?

    python -m studies.telepathy --preset cpu

Each agent sees some of the shared digits and a private nonce. It needs all digits and its own nonce
(`pooled_evidence`). For every seed agents are trained from scratch, then codecs on their states,
then adapters. The arms of a seed share agents and codecs. Every adapter is evaluated with all
controls: single agents; debates by text of 1, 2 and all words; no prefix; prefixes of zeros, of the
mean thought, and of the thoughts for another question.

`cpu`: three agents, one exchange, the `strict` routing of the paper, with the plain codec and with
the masked one (which adds noise to the messages). `full`: 2 to 5 agents under every routing mode;
1 to 4 rounds; agents of two sizes. `smollm2`: another study, with frozen SmolLM2 agents, notes in
plain language and facts that were never seen (`studies.commune.telepathy_smollm2`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.studies.arms import Arm, device_of, exports, read_summary, run_arms
from triptych.studies.commune import telepathy_smollm2
from triptych.studies.commune.telepathy_figure import draw
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    at_most,
    paired_test,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CLAIM = "thoughts carry as much as full text, and with a masked encoder nothing private"
CODECS = {"plain": "autoencoder.yaml", "masked": "masked_autoencoder.yaml"}
ADAPTERS = {"plain": "adapter.yaml", "masked": "masked_adapter.yaml"}
SEED_OPTIONS = (
    "--seed_everything",
    "--data.init_args.seed",
    "--data.init_args.task.init_args.seed",
)
TASK = "--data.init_args.task.init_args"
CONDITIONS = (
    *("single", "text_1", "text_2", "text_full"),
    *("thought", "shuffled", "constant", "zero", "no_prefix"),
)
LINEAR, NONLINEAR = "others' nonces, linear probe", "others' nonces, nonlinear probe"
BYTES = "bytes a question"
NEAR_TEXT, NEAR_OPTIMUM, LEAST_PRIVATE, NEAR_CHANCE = 0.02, 0.03, 0.95, 0.03
CHANCE = 0.2


@dataclass(frozen=True)
class Way:
    """One way of exchanging thoughts.

    Args:
        routing: Routing mode of the adapter.
        codec: `plain` or `masked`.
        num_agents: Number of agents.
        rounds: Number of rounds; 2 rounds contain one exchange.
        mixed: True if the agents differ in size.
    """

    routing: str = "strict"
    codec: str = "plain"
    num_agents: int = 3
    rounds: int = 2
    mixed: bool = False

    @property
    def label(self) -> str:
        """Name in tables: the differences from three agents of one size and one exchange."""
        parts = [f"{self.routing}, {self.codec}"]
        if self.num_agents != 3:
            parts.append(f"{self.num_agents} agents")
        if self.rounds != 2:
            parts.append(f"{self.rounds} rounds")
        if self.mixed:
            parts.append("mixed sizes")
        return ", ".join(parts)


STRICT, MASKED = Way(), Way(codec="masked")


def ways(preset: str) -> list[Way]:
    """Return the ways that a preset compares."""
    if preset != "full":
        return [STRICT, MASKED]
    found = []
    for num_agents in (3, 2, 4, 5):
        for routing in ("strict", "all", "shared_only"):
            found.append(Way(routing, num_agents=num_agents))
        found.append(Way(codec="masked", num_agents=num_agents))
    found += [Way(rounds=rounds) for rounds in (3, 4)]
    found += [Way(mixed=True), Way(codec="masked", mixed=True)]
    return found


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    presets = ("smoke", "cpu", "full", *telepathy_smollm2.PRESETS)
    parser = study_parser(
        __doc__,
        "telepathy",
        presets,
        num_seeds=None,
        seeds_help="number of seeds of each arm; default: 5, or 3 with SmolLM2",
    )
    options = begin_study(parser, args)
    if options.preset in telepathy_smollm2.PRESETS:
        options.seeds = options.seeds or 3
        return telepathy_smollm2.run(options)
    options.seeds = options.seeds or 5
    # The settings were chosen on seed 42.
    seeds = seeds_of(options)
    runs = run_ways(ways(options.preset), seeds, options)
    numbers = {
        label: [read_numbers(read_summary(run)["metrics"]) for run in dirs]
        for label, dirs in runs.items()
    }
    draw(numbers, optimum(), CHANCE, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [
            paired_test(f"{label}: {first} - {second}", *_pair(per_seed, first, second))
            for label, per_seed in numbers.items()
            for first, second in (
                ("thought", "text_1"),
                ("thought", "text_full"),
                ("shuffled", "single"),
            )
        ],
        checks(numbers, optimum()),
        figure={"single_optimum": optimum(), "chance": CHANCE},
        device=device_of(*runs.values()),
        seeds=seeds,
        single_optimum=optimum(),
    )


def run_ways(
    chosen: Sequence[Way], seeds: Sequence[int], options: argparse.Namespace
) -> dict[str, list[Path]]:
    """Train agents, codecs and adapters, each once per seed; return the runs of the adapters."""
    out, small = options.out / options.preset, _small(options.preset)

    def stage(arms: dict[Any, Arm]) -> dict[Any, list[Path]]:
        dirs = run_arms(list(arms.values()), seeds, out, options.workers, SEED_OPTIONS)
        return {key: dirs[arm.name] for key, arm in arms.items()}

    teams = stage(
        {
            (way.num_agents, way.mixed): Arm(
                f"agents-{way.num_agents}{'-mixed' * way.mixed}",
                (*_words("agents.yaml", way), *_team(way), *small),
            )
            for way in chosen
        }
    )
    codecs = stage(
        {
            (way.codec, way.num_agents, way.mixed): Arm(
                f"{way.codec}-{way.num_agents}{'-mixed' * way.mixed}",
                (*_words(CODECS[way.codec], way), *_latents(way), *small),
                exports(seeds, teams[way.num_agents, way.mixed]),
            )
            for way in chosen
        }
    )
    adapters = stage(
        {
            way: Arm(
                way.label.replace(", ", "-").replace(" ", "-"),
                (
                    *_words(ADAPTERS[way.codec], way),
                    *("--model.init_args.adapter.routing.mode", way.routing),
                    *("--model.init_args.rounds", str(way.rounds)),
                    *small,
                ),
                exports(seeds, codecs[way.codec, way.num_agents, way.mixed]),
            )
            for way in chosen
        }
    )
    return {way.label: adapters[way] for way in chosen}


def read_numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select the compared numbers from the metrics of a run."""
    return {
        **{name: metrics[f"val/{name}/accuracy"] for name in CONDITIONS},
        LINEAR: metrics["val/leakage/linear_probe_accuracy"],
        NONLINEAR: metrics["val/leakage/nonlinear_probe_accuracy"],
        BYTES: metrics["val/thought/bytes_per_question"],
    }


def checks(numbers: Numbers, single_optimum: float) -> dict[str, Check]:
    """Compare means over seeds with the bounds that were fixed beforehand."""

    def mean(way: Way, key: str) -> float:
        return sum(n[key] for n in numbers[way.label]) / len(numbers[way.label])

    thought = mean(STRICT, "thought")
    return {
        "full text - thought": at_most(mean(STRICT, "text_full") - thought, NEAR_TEXT),
        "thought - text of one word": at_least(thought - mean(STRICT, "text_1"), 0.0),
        "single off its optimum": at_most(
            abs(mean(STRICT, "single") - single_optimum), NEAR_OPTIMUM
        ),
        "shuffled thoughts - single": at_most(
            mean(STRICT, "shuffled") - mean(STRICT, "single"), 0.0
        ),
        "masked encoder: thought": at_least(mean(MASKED, "thought"), LEAST_PRIVATE),
        f"masked encoder: {LINEAR}": at_most(mean(MASKED, LINEAR), CHANCE + NEAR_CHANCE),
        f"masked encoder: {NONLINEAR}": at_most(mean(MASKED, NONLINEAR), CHANCE + NEAR_CHANCE),
    }


def optimum() -> float:
    """Return the best possible accuracy of one of three agents without messages."""
    from triptych.datamodules.commune.pooled_evidence import PooledEvidence

    return PooledEvidence().single_optimum()


def _pair(
    per_seed: Sequence[Mapping[str, float]], first: str, second: str
) -> tuple[list[float], list[float]]:
    return [n[first] for n in per_seed], [n[second] for n in per_seed]


def _words(config: str, way: Way) -> tuple[str, ...]:
    return (
        *("--config", f"configs/commune/{config}"),
        *(f"{TASK}.num_agents", str(way.num_agents)),
        *("--trainer.accelerator", "cpu"),
    )


def _team(way: Way) -> tuple[str, ...]:
    words = ("--model.init_args.agents.num_agents", str(way.num_agents))
    if not way.mixed:
        return words
    sizes = [64 if number == 1 else 48 for number in range(way.num_agents)]
    rest = {"family": "llama", "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64}
    bases = json.dumps([{"hidden_size": size, **rest} for size in sizes])
    return (*words, "--model.init_args.agents.bases", bases)


def _latents(way: Way) -> tuple[str, ...]:
    """Keep the number of shared latents at 14; each agent has six private ones."""
    if way.codec == "plain" or way.num_agents == 3:
        return ()
    return ("--model.init_args.codec.num_latents", str(6 * way.num_agents + 14))


def _small(preset: str) -> tuple[str, ...]:
    if preset != "smoke":
        return ()
    return (
        *(f"{TASK}.num_train", "64", f"{TASK}.num_val", "32"),
        *("--data.init_args.batch_size", "16"),
        *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2"),
    )


if __name__ == "__main__":
    main()
