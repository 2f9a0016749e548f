"""A reward that no longer scores anything stops the training, with its own first error."""

import json
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.lit_modules.diversify.test_policy_optimization import language_run
from tests.lit_modules.diversify.tiny_prompts import ANSWERS, TinyPrompts, module, trainer
from tests.objectives.rewards.reward_server import Scorer, serving
from triptych.cli import main
from triptych.lit_modules.diversify.reward_failures import RewardFailedError
from triptych.models.diversify.categorical_policy import CategoricalPolicy
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.rewards.base import Reward, Scores, TextReward
from triptych.objectives.rewards.composed import WeightedSum
from triptych.objectives.rewards.python_function import PythonFunction
from triptych.objectives.rewards.remote.http_json import HttpConfig
from triptych.objectives.rewards.remote.reward_server import RewardServer

COULD_NOT = r"ignore:.*could not score:UserWarning"


class Raises(TextReward):
    def score_one(self, text, prompt, record):
        raise RuntimeError("my server is down")


class ReturnsNone(TextReward):
    def score_one(self, text, prompt, record):
        return None


class ReturnsNan(TextReward):
    def score_one(self, text, prompt, record):
        return float("nan")


class ReturnsText(TextReward):
    def score_one(self, text, prompt, record):
        return "good"


class OutOfRange(TextReward):
    range = (0.0, 1.0)

    def score_one(self, text, prompt, record):
        return 5.0


class Lists(Reward):
    """A list is accepted; this one is right."""

    def score(self, rollout):
        return [float(text == "1") for text in rollout.texts]


class Words(Reward):
    """No Scores, no tensor, no list."""

    def score(self, rollout):
        return "fine"


class FailsFrom(TextReward):
    """Scores the first `good` steps, fails in the next `bad` ones, and scores again."""

    def __init__(self, good: int, bad: int) -> None:
        self.good, self.bad, self.step = good, bad, 0

    def score(self, rollout):
        self.step += 1
        return super().score(rollout)

    def score_one(self, text, prompt, record):
        if self.good < self.step <= self.good + self.bad:
            raise RuntimeError(f"down in step {self.step}")
        return float(text == "1")


def fit(folder: Any, steps: int = 8, **settings: Any) -> Any:
    seed_everything(3, verbose=False)
    made = module(evaluate_first=False, **settings)
    trainer(folder, max_steps=steps).fit(made, TinyPrompts())
    return made


@pytest.mark.filterwarnings(COULD_NOT)
@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (Raises(), "RuntimeError: my server is down"),
        (ReturnsNone(), "does not apply to this completion"),
        (ReturnsNan(), "the reward is nan"),
        (ReturnsText(), "could not convert string to float: 'good'"),
        (OutOfRange(), r"the reward is 5, outside the range \[0, 1\]"),
        (Words(), "Words.score returned str"),
        (WeightedSum([Lists(), Raises()]), "raises: RuntimeError: my server is down"),
        (PythonFunction("math:fsum"), "TypeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reward_that_never_works_stops_the_first_step(tmp_path, reward, reason):
    with pytest.raises(RewardFailedError, match=reason) as caught:
        fit(tmp_path, reward=reward)
    assert "on all 16 completions of the first step; first of all, on '" in str(caught.value)
    assert "model.init_args.stop_after_failures" in str(caught.value)
    # The user's own traceback is kept, where there was an exception.
    raised = caught.value.__cause__
    assert (raised is not None) == isinstance(
        reward, (Raises, ReturnsText, Words, WeightedSum)
    ) or (isinstance(reward, PythonFunction))


@pytest.mark.filterwarnings(COULD_NOT)
def test_steps_in_a_row_stop_it_later(tmp_path):
    with pytest.raises(
        RewardFailedError, match=r"all completions of 3 steps in a row \(up to step 6"
    ):
        fit(tmp_path, reward=FailsFrom(3, 3))
    with pytest.raises(RewardFailedError, match=r"first of all, .* down in step 4"):
        fit(tmp_path, reward=FailsFrom(3, 3))
    made = fit(tmp_path, reward=FailsFrom(3, 2))  # two are borne
    assert made.experience_log.failed_samples == 32
    with pytest.raises(RewardFailedError, match=r"of 1 step \(up to step 4"):
        fit(tmp_path, reward=FailsFrom(3, 1), stop_after_failures=1)


@pytest.mark.filterwarnings(COULD_NOT)
def test_null_never_stops(tmp_path):
    made = fit(tmp_path, reward=Raises(), stop_after_failures=None)
    assert made.experience_log.failed_samples == 8 * 16


@pytest.mark.filterwarnings(COULD_NOT)
def test_a_validation_before_training_stops_too(tmp_path):
    class ManyPrompts(TinyPrompts):
        def val_dataloader(self):
            return super().val_dataloader() * 5

    run = trainer(tmp_path, limit_val_batches=1.0)
    with pytest.raises(
        RewardFailedError, match=r"3 validation batches in a row.*my server is down"
    ):
        run.fit(module(reward=Raises()), ManyPrompts())


def test_a_list_is_a_reward(tmp_path):
    made = fit(tmp_path, 2, reward=Lists())
    assert made.experience_log.failed_samples == 0
    assert 0 < made.trainer.logged_metrics["train/reward"] < 1


def test_a_budget_that_is_spent_is_no_failure(tmp_path):
    class Spent(Reward):
        def score(self, rollout):
            count = len(rollout)
            return Scores(torch.full((count,), torch.nan), over_budget=set(range(count)))

    with pytest.warns(UserWarning, match="could not score"):
        fit(tmp_path, 4, reward=Spent())


def test_much_that_fails_is_told_to_be_biased(tmp_path):
    class FailsOnTwo(TextReward):
        def score_one(self, text, prompt, record):
            return 1 / (text != "2")

    with (
        pytest.warns(UserWarning, match="could not score"),
        pytest.warns(UserWarning, match=r"\d+ of about 320 completions could not.*biased"),
    ):
        fit(tmp_path, 20, reward=FailsOnTwo())


# -- a server ----------------------------------------------------------------------------------


class Dying:
    """Scores `good` requests, then closes the server's door."""

    def __init__(self, good: int) -> None:
        self.left = good
        self.server: Scorer | None = None

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        self.left -= 1
        if self.left < 0:
            assert self.server is not None
            self.server.socket.close()  # nobody listens any more
            return 500, "dying", {}
        return [float(text == "1") for text in body["completions"]]


@pytest.mark.filterwarnings(COULD_NOT)
def test_a_server_that_dies_stops_the_run_within_three_steps(tmp_path):
    dying = Dying(good=4)
    http = HttpConfig(retries=1, backoff_s=0.01)
    with serving(dying) as server:
        dying.server = server
        reward = RewardServer(server.url, http)
        made = module(evaluate_first=False, reward=reward)
        with pytest.raises(
            RewardFailedError, match=r"up to step 7.*after 2 tries: Client"
        ) as caught:
            trainer(tmp_path, max_steps=50).fit(made, TinyPrompts())
    assert server.url in str(caught.value)
    assert made.trainer.global_step <= 7


def test_with_retries_a_run_survives_a_servers_pause(tmp_path):
    """It is away for three requests in the middle of the run; all completions get their reward."""
    asked = []

    def pauses(path, body):
        asked.append(len(body["completions"]))
        if 4 <= len(asked) < 7:
            return 503, "restarting", {}
        return [float(text == "1") for text in body["completions"]]

    http = HttpConfig(retries=5, backoff_s=0.01)
    with serving(pauses) as server:
        made = fit(tmp_path, 6, reward=RewardServer(server.url, http))
    assert made.trainer.global_step == 6
    assert made.experience_log.failed_samples == 0
    assert len(asked) == 6 + 3


@pytest.mark.filterwarnings(COULD_NOT)
def test_the_run_on_the_command_line_fails_with_the_error(tiny):
    """And not as a success: its summary says that it failed."""
    reward = {
        "class_path": "triptych.objectives.rewards.remote.reward_server.RewardServer",
        "init_args": {"url": "http://127.0.0.1:9/score", "http": {"retries": 0}},
    }
    sections = language_run(reward=reward, mara=None, evaluate_first=False)
    with pytest.raises(RewardFailedError, match=r"first step.*http://127.0.0.1:9/score did not"):
        main(tiny("--run_dir", "failed", "--trainer.max_steps", "9", **sections))
    with open("failed/summary.json") as file:
        assert json.load(file)["status"] == "failed"


# -- what is no failure, and says so -----------------------------------------------------------


def messages(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_mara_with_nothing_to_do_is_told_in_a_run(tmp_path, caplog):
    """The other right answer is as good as never sampled."""
    policy = CategoricalPolicy(ANSWERS, [(0.99998, 1e-5, 1e-5)])
    with caplog.at_level("INFO"):
        made = fit(tmp_path, 8, mara=Mara(threshold=0.5), policy=policy)
    assert made.trainer.logged_metrics["train/distinct_share"] == 1 / 8
    assert messages(caplog).count("MARA has had nothing to do for 5 steps in a row") == 1


def test_equal_rewards_are_told_in_the_first_step_and_after_twenty(tmp_path, caplog):
    class Constant(TextReward):
        def score_one(self, text, prompt, record):
            return 0.0

    with caplog.at_level("INFO"):
        made = fit(tmp_path, 25, reward=Constant())
    assert messages(caplog).count("All 16 completions got the reward 0") == 1
    assert messages(caplog).count("For 20 steps in a row all completions of each prompt") == 1
    assert made.trainer.logged_metrics["train/equal_reward_share"] == 1.0


def test_single_samples_are_told_before_the_first_step(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path, 1, num_samples=1)
    assert "num_samples is 1, and Rloo compares" in messages(caplog)
