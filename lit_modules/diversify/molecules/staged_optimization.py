"""Staged learning: a search that changes its objective, each stage with its own end.

Like REINVENT 4's staged learning (curriculum): cheap objectives first, the dear ones for a policy
that has learned what they share. LibInvent and LinkInvent, which decorate and link given scaffolds,
are not part of it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from triptych.lit_modules.diversify.molecules.molecule_optimization import MoleculeOptimization
from triptych.lit_modules.diversify.policy_optimization import Prompts, Schedule
from triptych.models.diversify.rollout import only_texts
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.molecules.diversity_filters import DiversityFilter
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay
from triptych.objectives.diversify.molecules.random_distillation import RandomDistillation
from triptych.objectives.diversify.policy_loss import PolicyLoss
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward


@dataclass(frozen=True)
class SearchStage:
    """One stage of a search. It ends with the first of its ends that is reached.

    Args:
        reward: What is maximised; the stage ends when its budget of oracle calls is spent. Without
            a `ledger`, stage n writes `oracle_stage<n>.sqlite`, the last one `oracle.sqlite`.
        until_score: The stage ends once the mean score of a step's valid molecules reaches this,
            before the diversity filter; null: no such end.
        min_steps: Steps before `until_score` may end the stage.
        max_steps: Steps after which the stage ends; null: no such end.
        mara: MARA in this stage, for a threshold of its own; null: that of the search.

    Raises:
        ValueError: if `max_steps` is below `min_steps`.
    """

    reward: OracleReward
    until_score: float | None = None
    min_steps: NonNegativeInt = 0
    max_steps: PositiveInt | None = None
    mara: Mara | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(
                f"a stage has min_steps {self.min_steps} and max_steps {self.max_steps}: raise the "
                "second, or lower the first"
            )


class StagedMoleculeOptimization(MoleculeOptimization):
    """A `MoleculeOptimization` in several stages, in one run that resumes in the stage it was in.

    The policy goes on from stage to stage, and so do the optimizer and the reference, which is
    always the prior. Remembered molecules (`replay`) are scored anew, with calls of the new stage.
    `StopSearch` ends the run with the last stage's budget, and the report is of the last stage.

    Args:
        stages: The stages in order.
        init_from: Exported prior, or an experiment's config, which is then run first.
        vocab_size: Not used; the prior brings its vocabulary.
        mara: As in `MoleculeOptimization`, for stages without their own.
        sigma: As there, and so are the other arguments.
        loss: See there.
        num_samples: See there.
        updates_per_rollout: See there.
        replay: See there.
        diversity_filter: See there.
        purge_filter: Whether each stage begins with an empty diversity filter.
        max_new_tokens: See there.
        learning_rate: See there.
        schedule: See there.
        warmup_steps: See there.

    Attributes:
        stage: Number of the running stage, from 0.
        steps_in_stage: Its rollouts so far.
        stage_ends: Why each ended stage ended.

    Raises:
        ValueError: if there is no stage, or settings contradict each other.
    """

    headline_metrics = ("train/stage", *MoleculeOptimization.headline_metrics)

    def __init__(
        self,
        stages: list[SearchStage],
        init_from: str,
        vocab_size: int | None = None,
        mara: Mara | None = None,
        sigma: PositiveFloat = 64.0,
        loss: PolicyLoss | None = None,
        num_samples: PositiveInt = 64,
        updates_per_rollout: PositiveInt = 1,
        replay: ExperienceReplay | None = None,
        diversity_filter: DiversityFilter | RandomDistillation | None = None,
        purge_filter: bool = True,
        max_new_tokens: PositiveInt = 100,
        learning_rate: NonNegativeFloat = 1e-3,
        schedule: Schedule = "constant",
        warmup_steps: NonNegativeInt = 0,
    ) -> None:
        if not stages:
            raise ValueError("model.init_args.stages is empty: give at least one stage")
        super().__init__(
            stages[0].reward,
            init_from,
            vocab_size,
            stages[0].mara or mara,
            sigma,
            loss,
            num_samples,
            updates_per_rollout,
            replay,
            diversity_filter,
            max_new_tokens,
            learning_rate,
            schedule,
            warmup_steps,
        )
        self.stages = list(stages)
        self.purge_filter = purge_filter
        self.stage = 0
        self.steps_in_stage = 0
        self.stage_ends: list[str] = []
        self._own_mara = mara
        self._empty_filter = deepcopy(diversity_filter.state_dict()) if diversity_filter else None
        self._own_ledgers: set[int] = set()

    # -- a training step --------------------------------------------------------------------------

    def training_step(self, batch: Prompts, batch_idx: int) -> Tensor:
        """Take a step of the running stage, and go to the next one if it has reached its end."""
        loss = super().training_step(batch, batch_idx)
        assert self.experience is not None
        if self._is_used_up(self.experience):
            self.steps_in_stage += 1
            self.log("train/stage", float(self.stage + 1), prog_bar=True)
            if (reason := self._end_of_stage(self.experience)) is not None:
                self._end_stage(reason)
        return loss

    def _end_of_stage(self, experience: Experience) -> str | None:
        """Return why the stage ends with this step, or None."""
        stage = self.stages[self.stage]
        if self.oracle_calls >= stage.reward.budget:
            return f"the budget of {stage.reward.budget:,} oracle calls is spent"
        if stage.until_score is not None and self.steps_in_stage >= stage.min_steps:
            mean = self._mean_score(experience)
            if mean >= stage.until_score:
                return f"a step's mean score is {mean:.3f}, at least {stage.until_score:g}"
        if stage.max_steps is not None and self.steps_in_stage >= stage.max_steps:
            return f"{stage.max_steps:,} steps were made"
        return None

    def _mean_score(self, experience: Experience) -> float:
        """Return the mean score of the valid molecules, before the filter, over all processes."""
        components = experience.scores.components
        score_B = components.get("before_filter", experience.scores.reward_B)
        counted_B = score_B.isfinite() & (components["oracle_call"] != 0)
        sums = [score_B[counted_B].sum(), counted_B.sum()]
        total, count = self.experience_log.over_ranks(sums)
        return float(total / count) if count else float("-inf")

    def _end_stage(self, reason: str) -> None:
        self.stage_ends.append(reason)
        rank_zero_info(f"stage {self.stage + 1} of {len(self.stages)} has ended: {reason}")
        if self.stage + 1 == len(self.stages):
            self.trainer.should_stop = True
            return
        self.stages[self.stage].reward.close()
        self._enter(self.stage + 1)
        if self.purge_filter and self.diversity_filter is not None:
            assert self._empty_filter is not None
            self.diversity_filter.load_state_dict(deepcopy(self._empty_filter))
        if self.replay is not None:
            self.replay.rescore(self._scores_of_texts)

    def _enter(self, stage: int) -> None:
        self.stage, self.steps_in_stage, self.oracle_calls = stage, 0, 0
        self.reward = self.stages[stage].reward
        self.mara = self.stages[stage].mara or self._own_mara

    def _scores_of_texts(self, texts: Sequence[str]) -> Tensor:
        scores = self.reward(only_texts(texts))
        self._count_calls(scores)
        return scores.reward_B

    # -- before and after -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Set the paths of the stages' ledgers."""
        folder = Path(self.trainer.default_root_dir)
        for number, each in enumerate(self.stages[:-1]):
            if each.reward.ledger_path is None:
                self._own_ledgers.add(number)
                each.reward.ledger_path = str(folder / _ledger(number))
        last = self.stages[-1].reward
        if last.ledger_path is None:
            self._own_ledgers.add(len(self.stages) - 1)
            last.ledger_path = str(folder / "oracle.sqlite")
        super().setup(stage)
        self._keeps_own_ledger = bool(self._own_ledgers)

    def on_fit_start(self) -> None:
        """Pass the run's seed to the ledgers."""
        super().on_fit_start()
        for stage in self.stages:
            if stage.reward.seed is None:
                stage.reward.seed = self._seed

    def teardown(self, stage: str) -> None:
        """Stop the scoring processes of all stages."""
        for each in self.stages:
            each.reward.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the stage too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["stages"] = {
            "stage": self.stage,
            "steps_in_stage": self.steps_in_stage,
            "ends": list(self.stage_ends),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the stage, then memory, buckets and counts.

        Raises:
            ValueError: if the checkpoint is of another kind of search, or a later stage.
        """
        state = checkpoint.get("stages")
        if state is None or state["stage"] >= len(self.stages):
            raise ValueError(
                f"the checkpoint is of no search with at most {len(self.stages)} stages: go on "
                "with the config.yaml of its run"
            )
        self._enter(state["stage"])
        self.steps_in_stage, self.stage_ends = state["steps_in_stage"], list(state["ends"])
        super().on_load_checkpoint(checkpoint)

    def _take_calls_along(self, folder: Path) -> None:
        """Copy the ledgers of the resumed run, if this run has another folder."""
        moved = Path(str(self.trainer.ckpt_path)).absolute().parent.parent
        for number in sorted(self._own_ledgers):
            reward = self.stages[number].reward
            assert reward.ledger_path is not None
            target = Path(reward.ledger_path)
            places = [place / target.name for place in (folder, moved)]
            found = next((place for place in places if place.is_file()), None)
            if not target.is_file() and found is not None:
                reward.ledger.copy_from(found)
            elif not target.is_file() and number == self.stage:
                raise ValueError(
                    f"the checkpoint's run made {self.oracle_calls:,} oracle calls in stage "
                    f"{number + 1}, but {places[0]} is gone: name the file by the `ledger` of the "
                    "stage's reward, or all of them would be made again"
                )

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return why the stages ended."""
        return super().summary_rows() + [
            (f"stage {n + 1} ended", reason) for n, reason in enumerate(self.stage_ends)
        ]


def _ledger(number: int) -> str:
    return f"oracle_stage{number + 1}.sqlite"
