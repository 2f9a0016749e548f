import pytest

from triptych.datamodules.commune.debate_task import Question
from triptych.datamodules.commune.pooled_evidence import Evidence, PooledEvidence

QUESTION = Question(
    ["4", "4", "1"],
    [Evidence([1, None], 0), Evidence([None, 4], 2), Evidence([1, 4], 3)],
    [0, 2, 3],
)


@pytest.mark.parametrize("rule", ["max_min", "sum_modulo"])
@pytest.mark.parametrize("num_agents", [2, 5])
def test_every_digit_is_seen_and_answers_follow_from_all_of_them(rule, num_agents):
    task = PooledEvidence(rule, num_agents, num_digits=3, num_train=200)
    for question in task.questions("train"):
        columns = zip(*(evidence.digits for evidence in question.evidence), strict=True)
        digits = []
        for column in columns:
            (digit,) = {d for d in column if d is not None}
            digits.append(digit)
        for evidence, answer in zip(question.evidence, question.answers, strict=True):
            if rule == "max_min":
                right = max(digits) if evidence.nonce < 3 else min(digits)
            else:
                right = (sum(digits) + evidence.nonce) % 5
            assert answer == str(right)
        assert question.private == [evidence.nonce for evidence in question.evidence]


def test_each_agent_sees_each_digit_about_every_other_time():
    questions = PooledEvidence(num_train=4000).questions("train")
    seen = sum(question.evidence[0].digits[0] is not None for question in questions) / 4000
    assert seen == pytest.approx(0.5 + 0.125 / 3, abs=0.025)  # three standard errors


def test_prompts_and_messages_are_words_of_the_tokenizer():
    task = PooledEvidence()
    heard = task.messages([QUESTION], [], agent=0)
    assert heard == [["1: A? B4 n2 .", "2: A1 B4 n3 ."]]
    assert task.messages([QUESTION], [], agent=1, max_tokens=1) == [["0: A1", "2: A1"]]
    (ids,) = task.encode(task.tokenizer, [QUESTION], 0, heard)
    assert task.tokenizer.decode(ids) == "1: A? B4 n2 . 2: A1 B4 n3 . A1 B? n0 ="
    assert task.tokenizer.pad_token_id not in ids
    (alone,) = task.encode(task.tokenizer, [QUESTION], 0)
    assert task.tokenizer.decode(alone) == "A1 B? n0 ="


@pytest.mark.parametrize(("reply", "answer"), [("3", "3"), ("3 1", "3"), ("n3", None), ("", None)])
def test_answers_are_read(reply, answer):
    assert PooledEvidence().read_answer(reply) == answer


def test_zeros_are_more_frequent_in_training_questions_alone():
    task = PooledEvidence("sum_modulo", num_train=2000, num_val=200, zero_share=0.5)
    questions = task.questions("train")
    for place in range(3):
        zeros = sum(question.private[place] == 0 for question in questions) / 2000
        assert zeros == pytest.approx(0.5 + 0.5 / 5, abs=0.033)  # three standard errors
    for question in questions[:50]:
        seen = [{d for d in column if d is not None} for column in _columns(question)]
        total = sum(digit for (digit,) in seen)
        answers = [str((total + nonce) % 5) for nonce in question.private]
        assert question.answers == answers
    plain = PooledEvidence("sum_modulo", num_train=2000, num_val=200)
    assert task.questions("val") == plain.questions("val")
    assert task.fingerprint("val") == plain.fingerprint("val")
    assert task.fingerprint("train") != plain.fingerprint("train")


def _columns(question):
    """What the agents see of each digit."""
    return zip(*(evidence.digits for evidence in question.evidence), strict=True)


def test_splits_differ_and_stay_what_they_are():
    task = PooledEvidence(num_train=50, num_val=50)
    assert task.questions("train") == PooledEvidence(num_train=50, num_val=50).questions("train")
    assert task.questions("train") != task.questions("val")
    assert task.fingerprint("train") != task.fingerprint("val")
    assert task.fingerprint("val") != PooledEvidence(num_val=50, seed=1).fingerprint("val")


def test_the_optimum_of_a_single_agent_of_the_sum():
    # Both digits seen: certain; otherwise one in five. Seen with 1/2 + 1/24 each.
    both = (0.5 + 1 / 24) ** 2
    assert PooledEvidence("sum_modulo").single_optimum() == pytest.approx(both + (1 - both) / 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_agents": 1}, "at least 2 and at most 5"),
        ({"num_agents": 6}, "at most 5"),
        ({"num_digits": 0}, "task.num_digits"),
        ({"zero_share": 1.0}, "task.zero_share is 1.0"),
        ({"zero_share": -0.1}, "task.zero_share"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        PooledEvidence(**settings)
