"""Choice of facts: capped answers, and disjoint OLD and NEW parts."""

from collections import Counter

import pytest

from triptych.datamodules.remember.facts.fact_choice import cap_answers, draw, of_relations
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates
from triptych.datamodules.remember.facts.facts import FactsConfig, choose_facts, read_facts
from triptych.datamodules.sources.records import RecordSource, read_records

TEMPLATES = FactTemplates.from_file()
EMBEDDED = read_facts(RecordSource(), TEMPLATES)
STUDY_RELATIONS = ["P17", "P20", "P106", "P136", "P159", "P407", "P413", "P495"]


def fact(number, answer="x", relation="P36", subject=None):
    subject = subject or f"Place {number}"
    return Fact(str(number), f"What of {subject}?", (answer,), None, relation, subject)


def ids(facts):
    return [int(f.id) for f in facts]


def take(facts, skip, count, seed=0):
    return draw(facts, skip, count, seed, TEMPLATES, "'a file'")


def test_consecutive_parts_of_one_order_share_nothing_and_leave_nothing_out():
    facts = [fact(number) for number in range(40)]
    parts = [take(facts, 0, 25), take(facts, 25, 10), take(facts, 35, None)]
    assert [len(part) for part in parts] == [25, 10, 5]
    assert sorted(ids(parts[0]) + ids(parts[1]) + ids(parts[2])) == list(range(40))
    assert ids(take(facts, 0, 35)) == sorted(ids(parts[0]) + ids(parts[1]))
    for part in parts:
        assert ids(part) == sorted(ids(part))
    assert ids(take(facts, 0, 25, seed=1)) != ids(parts[0])


def test_repetitions_of_a_skipped_fact_are_passed_over():
    # "capital" is the templates' name of P36, so each fact is there three times.
    facts = [
        *[fact(number, subject=f"Place {number}") for number in range(20)],
        *[fact(100 + number, "y", "P36", f"place {number}") for number in range(20)],
        *[fact(200 + number, "z", "capital", f"PLACE {number}") for number in range(20)],
    ]
    old, new = take(facts, 0, 20), take(facts, 20, None)
    asked = [{f.subject.casefold() for f in part} for part in (old, new)]
    assert asked[1]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == {f"place {number}" for number in range(20)}


def test_facts_without_a_subject_are_told_apart_by_their_question():
    facts = [Fact(str(n), f"Who {'ABCD'[n % 4]}?" if n < 4 else f"who {'abcd'[n % 4]}?", ("x",))
             for n in range(8)]  # fmt: skip
    old, new = take(facts, 0, 2), take(facts, 2, None)
    assert not {f.question.casefold() for f in old} & {f.question.casefold() for f in new}


def test_the_same_subject_may_have_another_fact():
    facts = [fact(0, subject="A"), fact(1, relation="P17", subject="A")]
    assert len(take(facts, 1, None)) == 1


def test_answers_are_capped_evenly_and_by_seed():
    facts = [fact(number, "often" if number % 4 else f"once {number}") for number in range(80)]
    kept = cap_answers(facts, 8, 0)
    counts = Counter(f.answers[0] for f in kept)
    assert counts.pop("often") == 8
    assert set(counts.values()) == {1}
    assert len(counts) == 20
    assert ids(kept) == sorted(ids(kept))
    assert cap_answers(facts, 8, 0) == kept
    assert cap_answers(facts, 8, 1) != kept


def test_a_cap_leaves_common_answers_to_both_parts():
    facts = [fact(number, "often" if number % 2 else f"once {number}") for number in range(400)]
    config = FactsConfig(max_facts_per_answer=50)
    for part in (FactsConfig(max_facts_per_answer=50, num_facts=125),
                 FactsConfig(max_facts_per_answer=50, skip_facts=125)):  # fmt: skip
        chosen = choose_facts(facts, part, TEMPLATES)
        assert len(chosen) == 125
        assert 10 <= sum(f.answers[0] == "often" for f in chosen) <= 40
    assert len(choose_facts(facts, config, TEMPLATES)) == 250


def test_relations_are_known_by_the_names_of_the_source_and_of_the_templates():
    facts = [fact(0, relation="P36"), fact(1, relation="capital"), fact(2, relation="P17")]
    assert ids(of_relations(facts, ["capital"], TEMPLATES, "a")) == [0, 1]
    assert ids(of_relations(facts, ["country"], TEMPLATES, "a")) == [2]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"skip_facts": -1}, r"facts\.skip_facts is -1, but 'embedded' has 1510 facts.*below"),
        ({"skip_facts": 1510}, r"facts\.skip_facts is 1510, but 'embedded' has 1510 facts"),
        (
            {"skip_facts": 1500, "num_facts": 11},
            r"facts\.num_facts is 11, but 'embedded' has 10 facts.*after the first 1500",
        ),
        ({"num_facts": 0}, r"facts\.num_facts is 0"),
        ({"answers_of_first": 5}, r"facts\.answers_of_first is 5, but facts\.skip_facts is 0"),
        ({"skip_facts": 5, "answers_of_first": 0}, r"facts\.answers_of_first is 0.*between 1"),
        ({"skip_facts": 5, "later_relations": ["P0"]}, r"facts\.later_relations \['P0'\] do not"),
    ],
)
def test_impossible_choices_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        choose_facts(EMBEDDED, FactsConfig(**settings), TEMPLATES)


def test_new_facts_may_be_those_with_answers_of_old_ones():
    facts = [fact(number, f"answer {number % 60}") for number in range(100)]
    old = choose_facts(facts, FactsConfig(num_facts=30), TEMPLATES)
    known = {f.answers[0] for f in old}
    new = choose_facts(facts, FactsConfig(skip_facts=50, answers_of_first=30), TEMPLATES)
    others = choose_facts(facts, FactsConfig(skip_facts=50), TEMPLATES)
    assert new == [f for f in others if f.answers[0] in known]
    assert 0 < len(new) < len(others)


def test_new_facts_may_be_of_fewer_relations_than_old_ones():
    facts = [fact(n, relation="P36" if n % 3 else "P17") for n in range(90)]
    new = choose_facts(facts, FactsConfig(skip_facts=60, later_relations=["country"]), TEMPLATES)
    others = choose_facts(facts, FactsConfig(skip_facts=60), TEMPLATES)
    assert new == [f for f in others if f.relation == "P17"]
    assert 0 < len(new) < len(others)


def asked_of(facts):
    return {(TEMPLATES.relation_of(f).name, f.subject.casefold()) for f in facts}


def test_old_and_new_embedded_facts_are_disjoint():
    old = choose_facts(EMBEDDED, FactsConfig(num_facts=1400), TEMPLATES)
    new = choose_facts(EMBEDDED, FactsConfig(skip_facts=1400), TEMPLATES)
    assert (len(old), len(new)) == (1400, 110)
    assert not {f.id for f in old} & {f.id for f in new}
    assert not asked_of(old) & asked_of(new)
    # Facts of the same kinds.
    assert {f.relation for f in new} <= {f.relation for f in old}
    assert len({f.relation for f in new}) >= 9


def test_old_and_new_real_facts_are_disjoint_and_no_probes(real_data):
    source = RecordSource(str(real_data / "qa" / "facts.jsonl.gz"))
    facts = read_facts(source, TEMPLATES)
    settings = {"source": source, "relations": STUDY_RELATIONS, "max_facts_per_answer": 8}
    ranges = [(0, 1024), (1024, 300), (1324, None)]  # OLD, NEW, and NEW to choose settings on
    parts = [
        choose_facts(facts, FactsConfig(**settings, skip_facts=skip, num_facts=count), TEMPLATES)
        for skip, count in ranges
    ]
    assert [len(part) for part in parts] == [1024, 300, 367]
    for part in parts:
        assert Counter(f.answers[0] for f in part).most_common(1)[0][1] <= 8
        assert {f.relation for f in part} == set(STUDY_RELATIONS)
        assert all(f.subject for f in part)
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            assert not {f.id for f in part} & {f.id for f in other}
            assert not asked_of(part) & asked_of(other)
    probes = RecordSource(str(real_data / "qa" / "nq_open_dev_a.jsonl.gz"))
    asked = {
        row["question"].casefold().rstrip("?") for row in read_records(probes, {"question": str})
    }
    assert len(asked) > 1000
    for part in parts:
        for f in part:
            questions = {f.question, *TEMPLATES.question_texts(f, "training")}
            questions |= set(TEMPLATES.question_texts(f, "held_out"))
            assert not {q.casefold().rstrip("?") for q in questions} & asked
