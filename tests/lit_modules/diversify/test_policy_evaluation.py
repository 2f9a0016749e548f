"""What a metric of one's own gets in validation."""

from collections.abc import Mapping, Sequence

from lightning.pytorch import seed_everything

from tests.lit_modules.diversify.tiny_prompts import TinyPrompts, module, trainer
from triptych.metrics.diversify.prompt_metric import PromptMetric


class MeanLength(PromptMetric):
    """Characters of a sample."""

    def __init__(self) -> None:
        super().__init__(["characters_per_sample"])

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        return {"characters_per_sample": sum(map(len, texts)) / len(texts)}


class MeanScore(PromptMetric):
    """The mean reward again, and the number of samples of a prompt."""

    takes_scores = True

    def __init__(self) -> None:
        super().__init__(["mean_score", "num_scores"])

    def update(
        self,
        samples: Sequence[Sequence[str]],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> None:
        assert scores is not None
        assert [len(row) for row in scores] == [len(texts) for texts in samples]
        self.add_prompts(
            [{"mean_score": sum(row) / len(row), "num_scores": len(row)} for row in scores]
        )

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        raise AssertionError("update does it all")


def test_a_metric_gets_one_list_per_prompt_and_scores_if_it_says_so(tmp_path):
    seed_everything(3, verbose=False)
    made = module(metrics=[MeanLength(), MeanScore()], eval_samples=5)
    run = trainer(tmp_path, limit_val_batches=1.0)
    run.validate(made, TinyPrompts(), verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["val/held_out/characters_per_sample"] == 1.0  # the answers are 1, 2 and x
    assert found["val/held_out/num_scores"] == 5
    assert 0 < found["val/held_out/mean_score"] < 1
    assert found["val/held_out/mean_score"] == found["val/held_out/reward"]
