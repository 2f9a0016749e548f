"""What `teach` prints at its end: each fact, EasyEdit's four numbers, and what was kept."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from triptych.commands.fact_questions import AskedFact, Replies


def print_facts(
    facts: Sequence[AskedFact],
    before: Sequence[Replies],
    after: Sequence[Replies] | None,
    known: Sequence[str],
) -> None:
    """Print a row for each fact, and the totals.

    Args:
        facts: The facts.
        before: Replies before teaching.
        after: Replies after teaching; None if nothing was taught.
        known: Ids of the facts that were passed over.
    """
    table = Table("id", "fact", "known before", "learned", "asked another way", "neighbours")
    now = before if after is None else after
    for fact, old, new in zip(facts, before, now, strict=True):
        learned = "passed over" if fact.id in known else _yes(new.own)
        other = f"{old.other} -> {new.other} of {len(fact.other)}" if fact.other else "-"
        same = _num_same(old, new)
        beside = f"{same} of {len(old.neighbours)} unchanged" if old.neighbours else "-"
        table.add_row(fact.id, escape(fact.sentence), _yes(old.own), learned, other, beside)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(table)
    taught = [new for fact, new in zip(facts, now, strict=True) if fact.id not in known]
    answered = sum(new.other for new in now)
    wordings = sum(len(fact.other) for fact in facts)
    say(
        f"{len(known)} of {len(facts)} facts known before and passed over; "
        f"{sum(new.own for new in taught)} of {len(taught)} taught facts are answered now"
        + (f"; {answered} of {wordings} other wordings" if wordings else "")
    )


def print_quality(
    facts: Sequence[AskedFact], before: Sequence[Replies], after: Sequence[Replies]
) -> None:
    """Print EasyEdit's four numbers over the taught facts."""
    pairs = list(zip(before, after, strict=True))
    numbers = {
        "reliability": (sum(new.own for new in after), len(facts)),
        "generalization": (sum(new.other for new in after), sum(len(f.other) for f in facts)),
        "locality": (
            sum(_num_same(old, new) for old, new in pairs),
            sum(len(fact.neighbours) for fact in facts),
        ),
        "portability": (
            sum(new.follow_ups for new in after),
            sum(len(fact.follow_ups) for fact in facts),
        ),
    }
    told = [
        f"{name} {part / whole:.2f} ({part} of {whole})"
        for name, (part, whole) in numbers.items()
        if whole
    ]
    if told:
        say("of the taught facts: " + ", ".join(told))


def print_general(before: Sequence[Replies], after: Sequence[Replies]) -> None:
    """Print how many general questions are still answered."""
    right = [new.own for old, new in zip(before, after, strict=True) if old.own]
    same = sum(old.text == new.text for old, new in zip(before, after, strict=True))
    say(
        f"general questions: {sum(right)} of {len(right)} that were answered rightly still are; "
        f"{same} of {len(before)} replies are the same to the letter"
    )


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _num_same(old: Replies, new: Replies) -> int:
    return sum(a == b for a, b in zip(old.neighbours, new.neighbours, strict=True))
