"""Rows of facts in the formats of the field, brought to the fields of `facts.read_facts`.

    a line of plain text   a statement, "question? answer", or "question<TAB>answer"
    KnowEdit               prompt, target_new, rephrase_prompt, locality, portability
    CounterFact            requested_rewrite, paraphrase_prompts, neighborhood_prompts
    ZsRE                   src, alt, rephrase, loc, loc_ans
    PopQA                  question, possible_answers, subj, prop
    TriviaQA               question, answer.value, answer.aliases, question_id
    NaturalQuestions open  question, answer (a list)

A prompt that is no question ("The capital of Velmora is") becomes a statement with its answer, and
is asked by `statement_questions`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from triptych.datamodules.remember.facts.answer_place import MARK, MEND, unmarked
from triptych.datamodules.remember.facts.statement_questions import (
    guessed_answer,
    questions_about,
)
from triptych.datamodules.sources.record_files import BadRowError, Row

Values = dict[str, Any]

#: Fields of a row after `adapted`, besides `question` and `answers`.
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(["id", "first_answer", "statement", "relation", "subject"], str),
    **dict.fromkeys(["answer_in_statement", "locality", "portability", "_place", "_guessed"], str),
    **dict.fromkeys(["rephrase", "held_out", "paraphrases"], list[str]),
}
_QUESTION_END = ("?", "？", "؟", ":", "：")


def adapted(row: Row, columns: Mapping[str, str]) -> Values:
    """Bring a raw row to the fields that facts are read from.

    Args:
        row: The row.
        columns: The source's `columns`; the fields that they name are left as they are.

    Raises:
        BadRowError: if a field cannot be read, or an answer is not marked where it must be.
    """
    raw = row.values
    found = _by_format(row)
    _add_wordings(raw, found)
    for name in ("locality", "portability"):
        if name not in found and raw.get(name):
            found[name] = _follow_ups(raw[name], row.place, name)
    found = {name: value for name, value in found.items() if value is not None}
    for name in ("locality", "portability"):
        if name in found:
            found[name] = json.dumps(found[name])
    number = raw.get(columns.get("id", "id"))
    if isinstance(number, int) and not isinstance(number, bool):
        found[columns.get("id", "id")] = str(number)
    kept = {columns[name].split(".")[0] for name in columns} if columns else set()
    return {**raw, **{k: v for k, v in found.items() if k not in kept}, "_place": row.place}


def _by_format(row: Row) -> Values:
    raw = row.values
    if isinstance(raw.get("requested_rewrite"), dict):
        return _counterfact(raw, row.place)
    if "prompt" in raw and "target_new" in raw:
        return _knowedit(raw, row.place)
    if "src" in raw and "alt" in raw:
        return _zsre(raw)
    if "possible_answers" in raw and "question" in raw:
        return {
            "answers": raw.get("answers", raw["possible_answers"]),
            "subject": raw.get("subject", raw.get("subj")),
            "relation": raw.get("relation", raw.get("prop")),
        }
    if "question" not in raw and isinstance(raw.get("statement"), str):
        return _sentence(raw, row.place)
    if "answer" in raw and "answers" not in raw:
        return _answered(raw)
    return {}


def _answered(raw: Values) -> Values:
    """Read TriviaQA's `answer` with value and aliases, a list of answers, or a single one."""
    answer = raw["answer"]
    if not isinstance(answer, dict):
        return {"answers": _texts(answer)}
    return {
        "id": raw.get("id", raw.get("question_id")),
        "first_answer": answer.get("value"),
        "answers": answer.get("aliases") or _texts(answer.get("value")),
    }


def _knowedit(raw: Values, place: str) -> Values:
    answers = _texts(raw["target_new"])
    found = _asked(raw["prompt"], answers, place)
    found["held_out"] = _held_out(raw.get("rephrase_prompt", raw.get("rephrase")), answers)
    if raw.get("locality_prompt"):
        found["locality"] = [_follow_up(raw["locality_prompt"], raw.get("locality_ground_truth"))]
    if "id" not in raw and isinstance(raw.get("case_id"), int | str):
        found["id"] = str(raw["case_id"])
    return found


def _counterfact(raw: Values, place: str) -> Values:
    rewrite = raw["requested_rewrite"]
    subject, prompt = str(rewrite.get("subject", "")), str(rewrite.get("prompt", ""))
    target = rewrite.get("target_new")
    if "{}" not in prompt or not isinstance(target, dict) or "str" not in target:
        raise BadRowError(
            f"{place}: field 'requested_rewrite' needs a `prompt` with the hole {{}}, a `subject` "
            "and `target_new.str`, as in CounterFact"
        )
    answers = _texts(target["str"])
    found = _asked(prompt.replace("{}", subject), answers, place)
    found |= {"subject": subject, "relation": rewrite.get("relation_id")}
    found["held_out"] = _held_out(raw.get("paraphrase_prompts"), answers)
    true = rewrite.get("target_true", {})
    truth = true.get("str") if isinstance(true, dict) else None
    found["locality"] = [_follow_up(p, truth) for p in _texts(raw.get("neighborhood_prompts"))]
    if "id" not in raw and "case_id" in raw:
        found["id"] = str(raw["case_id"])
    return found


def _zsre(raw: Values) -> Values:
    found: Values = {
        "question": raw["src"],
        "answers": _texts(raw["alt"]),
        "held_out": _texts(raw.get("rephrase")),
    }
    if raw.get("loc"):
        question = str(raw["loc"]).removeprefix("nq question: ").strip()
        found["locality"] = [_follow_up(question, raw.get("loc_ans"))]
    further = raw.get("portability")
    if isinstance(further, dict) and "New Question" in further:
        found["portability"] = [_follow_up(further["New Question"], further.get("New Answer"))]
    return found


def _sentence(raw: Values, place: str) -> Values:
    """Read a row with a statement alone: a line of text."""
    text = raw["statement"].strip()
    pair = re.fullmatch(r"(.+[?？])\s*(\S.*)|([^\t]+)\t+(.+)", text)
    if pair:
        question, answer = pair[1] or pair[3], pair[2] or pair[4]
        return {"question": question.strip(), "answers": [answer.strip()], "statement": ""}
    answers = _texts(raw.get("answers", raw.get("answer")))
    marked, guessed = MARK.search(text), None
    if marked:
        answers = answers or [marked[1]]
    elif not answers:
        guessed = guessed_answer(text)
        if guessed is None:
            raise BadRowError(
                f"{place}: field 'statement' does not say what is asked of {text[:60]!r}: {MEND}; "
                "or write 'question? answer'"
            )
        answers = [guessed]
        start = text.rindex(guessed)
        text = f"{text[:start]}[[{guessed}]]{text[start + len(guessed) :]}"
        marked = MARK.search(text)
    beginning = text[: marked.start()] if marked else text.split(answers[0])[0]
    question, *others = questions_about(beginning or unmarked(text), answers[0])
    return {
        "question": question,
        "answers": answers,
        "statement": text,
        "rephrase": others,
        "_guessed": guessed,
    }


def _asked(prompt: Any, answers: list[str], place: str) -> Values:
    """Ask a prompt: as it is if it is a question, else as the beginning of a statement."""
    prompt = str(prompt).strip()
    if not answers:
        raise BadRowError(f"{place}: the new answer (`target_new`) is empty: give one")
    if prompt.endswith(_QUESTION_END):
        return {"question": prompt, "answers": answers}
    question, *others = questions_about(prompt, answers[0])
    return {
        "question": question,
        "answers": answers,
        "statement": f"{prompt} [[{answers[0]}]].",
        "rephrase": others,
    }


def _held_out(prompts: Any, answers: list[str]) -> list[str]:
    return [as_question(prompt, answers[0] if answers else "") for prompt in _texts(prompts)]


def as_question(prompt: str, answer: str = "") -> str:
    """Ask a prompt that may be the beginning of a sentence.

    >>> as_question("Maelle Kerdoncuff grew up speaking")
    'Complete this sentence: Maelle Kerdoncuff grew up speaking'
    """
    prompt = prompt.strip()
    return prompt if prompt.endswith(_QUESTION_END) else questions_about(prompt, answer)[0]


def _add_wordings(raw: Values, found: Values) -> None:
    """Sort the wordings that a row brings into questions and statements."""
    if "held_out" in raw:
        found["held_out"] = _texts(raw["held_out"])
    if "held_out" not in found or not found["held_out"]:
        wordings = [w for n in ("rephrase", "questions") for w in _texts(raw.get(n))]
        paraphrases = _texts(raw.get("paraphrases"))
        asked = [text for text in paraphrases if text.endswith(_QUESTION_END)]
        found["rephrase"] = [*found.get("rephrase", ()), *wordings, *asked] or None
    sentences = [t for t in _texts(raw.get("paraphrases")) if not t.endswith(_QUESTION_END)]
    if "paraphrases" in raw:
        found["paraphrases"] = sentences or None


def _follow_ups(value: Any, place: str, name: str) -> list[Values]:
    """Read `{kind: [{prompt, ground_truth}]}`, or a list of such prompts or of texts."""
    entries = [e for group in value.values() for e in group] if isinstance(value, dict) else value
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            found.append(_follow_up(entry, None))
        elif isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
            answers = next(
                (entry[k] for k in ("ground_truth", "answers", "answer") if k in entry), None
            )
            found.append(_follow_up(entry["prompt"], answers))
        else:
            raise BadRowError(
                f"{place}: field {name!r} must hold prompts, or objects with `prompt` and "
                f"`ground_truth`; it holds {str(entry)[:60]!r}"
            )
    return found


def _follow_up(prompt: Any, answers: Any) -> Values:
    return {"prompt": str(prompt), "answers": _texts(answers)}


def _texts(value: Any) -> list[str]:
    """List the texts in a value: a text, a number, a list of them, or nested lists."""
    if value is None or isinstance(value, dict):
        return []
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, str) and value.startswith("["):
        try:
            return _texts(json.loads(value))
        except json.JSONDecodeError:
            pass
    return [str(value).strip()] if str(value).strip() else []
