"""Rewards by a server: what is sent and read, what is tried again, what fails and says so."""

import time

import pytest
import torch

from tests.objectives.rewards.reward_server import serving
from triptych.objectives.rewards.composed import WeightedMean
from triptych.objectives.rewards.length_window import LengthWindow
from triptych.objectives.rewards.remote.chat_judge import ChatJudge
from triptych.objectives.rewards.remote.http_json import HttpConfig
from triptych.objectives.rewards.remote.reward_server import RewardServer

QUICK = HttpConfig(retries=2, backoff_s=0.01, timeout_s=5.0)


def lengths(path, body):
    return {"rewards": [float(len(text)) for text in body["completions"]]}


def test_batches_are_sent_with_what_the_server_needs(rollout_of):
    with serving(lengths) as server:
        reward = RewardServer(server.url, QUICK, batch_size=2, fields=["answers"])
        scores = reward(rollout_of(["a", "bb", "ccc"], record={"answers": ["1"]}))
    assert scores.reward_B.tolist() == [1.0, 2.0, 3.0]
    assert not scores.errors
    sizes = sorted(len(body["completions"]) for body in server.bodies)
    assert sizes == [1, 2]
    (pair,) = [body for body in server.bodies if len(body["completions"]) == 2]
    assert pair == {
        "prompts": ["Name a fruit."] * 2,
        "completions": ["a", "bb"],
        "finished": [True, True],
        "num_tokens": [1, 1],
        "answers": [["1"], ["1"]],
    }


def test_requests_begin_in_the_background_and_go_out_together(rollout_of):
    def slow(path, body):
        time.sleep(0.1)
        return [0.5] * len(body["completions"])

    rollout = rollout_of(list("abcdefgh"))
    with serving(slow) as server:
        reward = RewardServer(server.url, HttpConfig(concurrency=4), batch_size=1)
        reward.begin(rollout)
        deadline = time.monotonic() + 5
        while server.most_inside < 4 and time.monotonic() < deadline:
            time.sleep(0.005)  # the caller is free meanwhile
        assert server.most_inside == 4
        assert reward(rollout).reward_B.tolist() == [0.5] * 8
        assert len(server.bodies) == 8  # once each
        assert server.most_inside == 4
        assert reward(rollout_of(["x"])).reward_B.tolist() == [0.5]  # without `begin`


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(rollout_of, status):
    left = [2]

    def stumbles(path, body):
        left[0] -= 1
        return lengths(path, body) if left[0] < 0 else (status, "busy", {"Retry-After": "0"})

    with serving(stumbles) as server:
        assert RewardServer(server.url, QUICK)(rollout_of(["abc"])).reward_B.tolist() == [3.0]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "tries", "reason"),
    [
        (lambda path, body: (503, "no card left", {}), 3, "after 3 tries: 503.*no card left"),
        (lambda path, body: (404, "who?", {}), 1, "after 1 try: 404 Not Found: who?"),
        (lambda path, body: (200, "<html>", {}), 1, "answered no JSON.*<html>"),
        (lambda path, body: [1.0, 2.0], 1, "1 completions were sent, and 2 values came back"),
        (lambda path, body: {"scores": [1.0]}, 1, "no 'rewards', only scores"),
        (lambda path, body: ["good"], 1, "could not convert string"),
        (lambda path, body: time.sleep(0.3), 3, "after 3 tries: no answer within 0.1 s"),
    ],
    ids=["503", "404", "html", "number", "key", "text", "slow"],
)
def test_what_fails_says_so(rollout_of, answer, tries, reason):
    with serving(answer) as server:
        http = HttpConfig(retries=2, backoff_s=0.0, timeout_s=0.1)
        scores = RewardServer(server.url, http)(rollout_of(["abc"]))
        assert len(server.bodies) == tries
    assert scores.reward_B.isnan().all()
    assert server.url in scores.errors[0]
    with pytest.raises(AssertionError, match=reason):  # the whole text where it differs
        raise AssertionError(scores.errors[0])


def test_one_failed_request_costs_its_own_completions(rollout_of):
    def answer(path, body):
        bad = "bad" in body["completions"]
        return (400, "bad text", {}) if bad else {"rewards": [1.0, None][: len(body["prompts"])]}

    with serving(answer) as server:
        scores = RewardServer(server.url, QUICK, batch_size=2)(rollout_of(["a", "b", "c", "bad"]))
    assert scores.reward_B[0] == 1.0
    assert scores.reward_B[1:].isnan().all()
    assert scores.not_applicable == {1}
    assert "400 Bad Request: bad text" in scores.errors[2] == scores.errors[3]


def test_a_judge_is_asked_as_openais_clients_ask(rollout_of, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")

    def judges(path, body):
        said = body["messages"][-1]["content"]
        rating = "I see. <score>7.5</score>" if "A pear" in said else "No idea."
        return {"choices": [{"message": {"role": "assistant", "content": rating}}]}

    with serving(judges) as server:
        judge = ChatJudge(
            f"{server.url}/v1/",
            "small-judge",
            system="Be strict.",
            http=HttpConfig(api_key_env="JUDGE_KEY"),
            request={"max_tokens": 20},
        )
        scores = judge(rollout_of(["A pear {x}.", "<score>10</score>"]))
    assert scores.reward_B[0] == 0.75
    assert "no rating of the form" in scores.errors[1]
    assert "'No idea.'" in scores.errors[1]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("small-judge", 0.0, 20)
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    assert "Name a fruit." in body["messages"][1]["content"]
    assert server.headers_seen[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(judge.__dict__)


def test_a_judges_task_may_name_fields_of_the_row(rollout_of):
    reply = {"choices": [{"message": {"content": "2"}}]}
    with serving(lambda path, body: reply) as server:
        settings = {"pattern": r"(\d)", "least": 1.0, "most": 3.0}
        judge = ChatJudge(server.url, "m", "{answers} or {completion}?", **settings)
        assert judge(rollout_of(["x"], record={"answers": ["1"]})).reward_B.tolist() == [0.5]
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "['1'] or x?"}]
        assert "task names answers, and the data's row has" in judge(rollout_of(["x"])).errors[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RewardServer("localhost:8000"), "begins with http"),
        (lambda: RewardServer("http://x", batch_size=0), "batch_size is 0"),
        (lambda: RewardServer("http://x", least=1.0, most=1.0), "least below most"),
        (lambda: ChatJudge("http://x", "m", task="Good?"), "no {completion}"),
        (lambda: ChatJudge("http://x", "m", task="{completion"), "double other braces"),
        (lambda: ChatJudge("http://x", "m", pattern=r"\d"), "in parentheses"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_key_ends_the_run(rollout_of, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    reward = RewardServer("http://127.0.0.1:9", HttpConfig(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(ValueError, match="NO_SUCH_KEY is not set"):
        reward(rollout_of(["x"]))


def test_parts_of_a_sum_ask_at_the_same_time(rollout_of):
    def slow(path, body):
        time.sleep(0.05)
        return [1.0] * len(body["completions"])

    with serving(slow) as server:
        parts = [RewardServer(f"{server.url}/{name}", least=0.0, most=1.0) for name in "ab"]
        reward = WeightedMean([*parts, LengthWindow(1, 3, 3)], names=["a", "b", "length"])
        rollout = rollout_of(["x"])
        reward.begin(rollout)
        scores = reward(rollout)
        assert server.most_inside == 2
    torch.testing.assert_close(scores.reward_B, torch.ones(1))
    assert list(scores.components) == ["a", "b", "length"]
