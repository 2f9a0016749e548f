"""Which of many facts are used: of some relations, few of one answer, a part drawn by seed.

    all facts -> those of the relations -> at most m of each answer -> an order drawn by the seed
      -> the first `skip_facts` of it are passed over
      -> only answers that occur among the first `answers_of_first`, if that is set
      -> only facts of the `later_relations`, if these are set
      -> the next `num_facts` are used

Two runs that differ in the last two alone share no fact as long as the ranges do not overlap. That
is how OLD facts, which a model was pretrained on, and NEW ones, which it is to learn, are told
apart.
"""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates


def of_relations(
    facts: Sequence[Fact], relations: Sequence[str], templates: FactTemplates, source: str
) -> list[Fact]:
    """Keep the facts of the relations, which may be named as the source or the templates do.

    Raises:
        ValueError: if a relation does not occur in `source`.
    """
    wanted = _are_of(facts, relations, templates, source, "relations")
    return list(itertools.compress(facts, wanted))


def _are_of(
    facts: Sequence[Fact],
    relations: Sequence[str],
    templates: FactTemplates,
    source: str,
    setting: str,
) -> list[bool]:
    """Say of each fact whether it is of one of the relations that a setting names."""
    names = [_relation_names(fact, templates) for fact in facts]
    unknown = set(relations).difference(*names)
    if unknown:
        most_common = [name for name, _ in Counter(n for ns in names for n in ns).most_common()]
        raise ValueError(
            f"facts.{setting} {sorted(unknown)} do not occur in {source}: "
            f"choose among {', '.join(most_common) or 'none (no row names a relation)'}"
        )
    return [not n.isdisjoint(relations) for n in names]


def cap_answers(facts: Sequence[Fact], max_facts_per_answer: int, seed: int) -> list[Fact]:
    """Keep at most so many facts that teach the same answer, drawn by `seed`, in their order.

    Raises:
        ValueError: if not even one is to be kept.
    """
    if max_facts_per_answer < 1:
        raise ValueError(
            f"facts.max_facts_per_answer is {max_facts_per_answer}: set it to at least 1, or null "
            "for all"
        )
    taken: Counter[str] = Counter()
    kept = []
    for index in _order(len(facts), f"{seed}/answers"):
        answer = facts[index].answers[0]
        taken[answer] += 1
        if taken[answer] <= max_facts_per_answer:
            kept.append(index)
    return [facts[index] for index in sorted(kept)]


def draw(
    facts: Sequence[Fact],
    skip: int,
    count: int | None,
    seed: int,
    templates: FactTemplates,
    source: str,
    answers_of_first: int | None = None,
    later_relations: Sequence[str] | None = None,
) -> list[Fact]:
    """Take facts `skip` to `skip + count` of an order drawn by `seed`; the source's order is kept.

    Facts that ask the same of the same subject as one that is passed over are passed over too, so
    that a data set's repetitions do not bring OLD facts among the NEW.

    Args:
        facts: What is drawn from.
        skip: How many are passed over.
        count: How many are taken; None: all that follow.
        seed: Of the order.
        templates: Tell which relations are the same.
        source: Names the facts' source in errors.
        answers_of_first: Pass over facts whose (first) answer none of so many facts at the start of
            the order has; None: any answer will do.
        later_relations: Pass over facts of other relations; None: any will do.

    Raises:
        ValueError: if there are not so many.
    """
    if not 0 <= skip < len(facts):
        raise ValueError(
            f"facts.skip_facts is {skip}, but {source} has {len(facts)} facts of the chosen "
            "relations: set it to at least 0 and below that"
        )
    order = _order(len(facts), str(seed))
    passed_over = {_what_is_asked(facts[index], templates) for index in order[:skip]}
    left = [i for i in order[skip:] if _what_is_asked(facts[i], templates) not in passed_over]
    if answers_of_first is not None:
        if not 1 <= answers_of_first <= skip:
            raise ValueError(
                f"facts.answers_of_first is {answers_of_first}, but facts.skip_facts is {skip}: "
                "answers are known from facts that are passed over, so set it between 1 and that"
            )
        known = {facts[index].answers[0] for index in order[:answers_of_first]}
        left = [index for index in left if facts[index].answers[0] in known]
    if later_relations is not None:
        those = [facts[index] for index in left]
        wanted = _are_of(those, later_relations, templates, source, "later_relations")
        left = list(itertools.compress(left, wanted))
    if count is not None and not 1 <= count <= len(left):
        after = f" after the first {skip}" if skip else ""
        raise ValueError(
            f"facts.num_facts is {count}, but {source} has {len(left)} facts of the chosen "
            f"relations{after}: set it between 1 and that, or null for all"
        )
    return [facts[index] for index in sorted(left[:count])]


def _order(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _what_is_asked(fact: Fact, templates: FactTemplates) -> tuple[str, str]:
    """Name what a fact says of whom: two facts alike in this are two versions of one."""
    relation = templates.relation_of(fact)
    name = relation.name if relation else fact.relation
    if name is None or fact.subject is None:
        return "question", fact.question.casefold()
    return name, fact.subject.casefold()


def _relation_names(fact: Fact, templates: FactTemplates) -> set[str]:
    """Name a fact's relation as the source and as the templates do."""
    relation = templates.relation_of(fact)
    names = {fact.relation, relation.name if relation else None}
    return {name for name in names if name is not None}
