"""Choice of facts: by relation, by number of facts with one answer, and by a seeded draw.

    all facts -> those of the relations -> at most m of each answer -> an order drawn by the seed
      -> skip the first `skip_facts`
      -> keep answers that occur among the first `answers_of_first`, if set
      -> keep facts of the `later_relations`, if set
      -> keep the next `num_facts`

Two runs that differ in `skip_facts` and `num_facts` alone share no fact, if the ranges do not
overlap. This separates OLD facts, which a model was pretrained on, from NEW ones to teach it.
"""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates


def of_relations(
    facts: Sequence[Fact], relations: Sequence[str], templates: FactTemplates, source: str
) -> list[Fact]:
    """Keep the facts of the relations, named as in the source or in the templates.

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
    """Return for each fact whether it is of one of the relations in a setting."""
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
    """Keep at most `max_facts_per_answer` facts with the same first answer, drawn by `seed`."""
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
    """Take facts `skip` to `skip + count` of an order drawn by `seed`; keep the source's order.

    Facts with the subject and relation of a skipped fact are skipped too, so that a data set's
    repetitions do not bring OLD facts among the NEW.

    Args:
        facts: The facts to draw from.
        skip: Number of facts to skip.
        count: Number of facts to take; None: all that follow.
        seed: Seed of the order.
        templates: Gives each fact its relation.
        source: Name of the facts' source in errors.
        answers_of_first: Skip facts with a first answer that does not occur among this many facts
            at the start of the order; None: keep all.
        later_relations: Skip facts of other relations; None: keep all.

    Raises:
        ValueError: if too few facts are left.
    """
    if not 0 <= skip < len(facts):
        raise ValueError(
            f"facts.skip_facts is {skip}, but {source} has {len(facts)} facts of the chosen "
            "relations: set it to at least 0 and below that"
        )
    order = _order(len(facts), str(seed))
    skipped = {_subject_matter(facts[index], templates) for index in order[:skip]}
    left = [i for i in order[skip:] if _subject_matter(facts[i], templates) not in skipped]
    if answers_of_first is not None:
        if not 1 <= answers_of_first <= skip:
            raise ValueError(
                f"facts.answers_of_first is {answers_of_first}, but facts.skip_facts is {skip}: "
                "answers are known from the skipped facts, so set it between 1 and that"
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


def _subject_matter(fact: Fact, templates: FactTemplates) -> tuple[str, str]:
    """Return relation and subject: facts with equal pairs are versions of one fact."""
    relation = templates.relation_of(fact)
    name = relation.name if relation else fact.relation
    if name is None or fact.subject is None:
        return "question", fact.question.casefold()
    return name, fact.subject.casefold()


def _relation_names(fact: Fact, templates: FactTemplates) -> set[str]:
    """Return the names of a fact's relation in the source and in the templates."""
    relation = templates.relation_of(fact)
    names = {fact.relation, relation.name if relation else None}
    return {name for name in names if name is not None}
