import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.datamodules.commune.answer_extraction import read_answer
from triptych.datamodules.commune.expression_form import normal_expression


def equal(kind, gold, reply):
    right = read_answer(gold, kind)
    assert right is not None
    return read_answer(reply, kind) == right


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("16 - 3 - 4 = 9 eggs, so 9 * 2 = $18\n#### 18", "number", "18"),
        ("#### 1,450", "number", "1450"),
        ("It is -3.50 dollars", "number", "-3.5"),
        ("The answer is 12 apples, of 40.", "number", "12"),
        (r"\boxed{7}. Not 8", "number", "7"),
        ("a 3/6 share", "number", "0.5"),
        ("There are 5.", "number", "5"),
        ("a 1/0 share", "number", None),
        ("nothing", "number", None),
        ("Correct answer - A", "letter", "A"),
        ("B) 6000", "letter", "B"),
        ("Answer: (D)", "letter", "D"),
        ("A and B are wrong. The answer is C, not A.", "letter", "C"),
        ("Don't know", "letter", None),
        (r"thus \boxed{\frac12} holds", "boxed", "0.5"),
        (r"\boxed{ \left(1, 2\right) }", "boxed", "(1,2)"),
        (r"\boxed{\text{even}}", "boxed", "even"),
        (r"\boxed{5\text{ cm}}", "boxed", "5"),
        (r"\boxed{1{,}000", "boxed", None),
        ("no box 5", "boxed", None),
    ],
)
def test_answers_are_read(text, kind, answer):
    assert read_answer(text, kind) == answer


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="answer_kind"):
        read_answer("5", "word")


@pytest.mark.parametrize(
    ("gold", "reply"),
    [
        # signs, currencies, thousands, percent, decimals
        ("70000", "He made a profit of $70,000."),
        ("-3", "The change is -$3."),
        ("-3", "The change is $-3."),
        ("-5", "So x = −5."),
        ("3", "x-3"),
        ("50", "The answer is 50%."),
        ("1234.5", "#### 1234.50"),
        ("1000", "The answer is $1{,}000$."),
        ("10000", "The answer is 10 000."),
        ("18", "The final answer is $\\boxed{\\$18}$"),
        # fractions and mixed numbers
        ("0.5", "The answer is 1/2."),
        ("0.5", "The answer is .5"),
        ("0.75", r"\boxed{\frac{3}{4}}"),
        ("2.5", "It takes 2 1/2 hours"),
        ("2.5", "It takes 2½ hours"),
        # the first mark that a number follows, and not the words around it
        ("10", "The answer is 10. I hope this answer is helpful!"),
        ("10", "The answer is 10. Yes, the answer is correct."),
        ("12", "The answer is 12, 9 of which are red"),
        ("10", "#### 10 apples (5 + 5)"),
        ("10", "The answer to the question is 10."),
        ("18", "**Final Answer**\n\n18"),
        ("18", "**Answer:** 18"),
        ("18", "The answer is not 17 but 18."),
        ("66", "The answer was 48 + 16 = 64 points.\n#### 66"),
        ("18", "#### Step 2: Multiply\n9 * 2 = 18"),
        ("18", "#### 1. Find 7\n#### 2. Multiply\nSo 9 * 2 = 18"),
        ("5", "The answer is five."),
        # equations
        ("3", "The answer is 12 - 9 = 3."),
        ("3", "So the answer is x = 3"),
        ("6", "The answer is 6 = 2 * 3"),
        # what follows the answer
        ("18", "#### 18\n\nQuestion: Tom has 5 apples.\n#### 25"),
        ("18", "She has 18.\n\nQ: John has 3 apples. How many?"),
        ("18", "She has 18.<|im_end|>\n<|im_start|>user\n7"),
        # exponents are no numbers of their own
        ("40", "So the area is 40 cm^2."),
        ("40", r"So the area is 40 \text{cm}^{2}"),
        ("1500", "1.5 × 10^3"),
    ],
)
def test_numbers_of_chat_models(gold, reply):
    assert equal("number", gold, reply)


@pytest.mark.parametrize("reply", [r"\boxed{3, 18}", r"\boxed{3 \text{ and } 18}"])
def test_a_list_is_not_its_last_number(reply):
    assert not equal("number", "18", reply)
    assert not equal("number", "3", reply)


@pytest.mark.parametrize(
    ("gold", "reply"),
    [
        ("B", "**B**"),
        ("B", "Answer: B) 12"),
        ("B", "I think the best choice is B because A good plan needs it."),
        ("C", "(C) 5, not (A) 4"),
        ("B", r"\boxed{\textbf{(B)}\ 12}"),
        ("B", "b"),
        ("B", "The answer is b) 12."),
        ("B", "B. I am sure"),
        ("B", "So it is B. Am I right?"),
        ("C", "The correct option is C. A and B are wrong."),
        ("D", "A) is wrong. B) is wrong. The answer is D"),
        ("C", "A) 5\nB) 6\nC) 7\n\nSo it is C."),
        ("C", "The answer is the third option, C."),
        ("C", "The answer is not A but C."),
        ("C", "Answer: C\n\nQuestion: the next one\nAnswer: A"),
        ("B", "Hence the answer is a.\nAnswer:B"),
        ("A", "The answer is A because it is."),
        ("A", "a"),
    ],
)
def test_letters_of_chat_models(gold, reply):
    assert equal("letter", gold, reply)


def test_letters_are_limited_to_the_options():
    assert read_answer("Answer: F", "letter", 5) is None
    assert read_answer("Answer: E. Vitamin F helps", "letter", 5) == "E"
    assert read_answer("I think it is H2O", "letter") is None


@pytest.mark.parametrize(
    "forms",
    [
        (r"\frac{1}{2}", r"\frac12", r"\dfrac 1 2", "1/2", "0.5", ".5", r"\tfrac{2}{4}"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", "-0.5", "−1/2"),
        (r"5\frac{1}{2}", r"\frac{11}{2}", "5 1/2", "5.5"),
        ("90", r"90^\circ", r"90^{\circ}", r"90\text{ degrees}", "90°"),
        ("12", r"12\text{ cm}", r"12 \text{ square units}", r"12\text{ cm}^2", r"12\,\mathrm{cm}"),
        ("12", "12 cm", "12 apples", "12 cm^2", r"\$12", r"12\%", r"\text{12 cm}"),
        ("3", "x=3", "x = 3", r"\mathbf{3}", r"\text{Area} = 3"),
        ("A", r"\text{(A)}", "(A)", r"\textbf{(A)}\ 12"),
        (r"\text{Evelyn}", "Evelyn"),
        ("1000", "1,000", "1{,}000", r"1,\!000", r"1\,000", "1000.0"),
        ("2x+3", "3+2x", "2*x + 3"),
        (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
        ("x^{2}", "x^2", "x²"),
        (r"2\sqrt3", r"2\sqrt{3}", r"\sqrt{12}", "2√3"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (
            r"\begin{pmatrix} \frac12 & 1 \\ 2 & 0 \end{pmatrix}",
            r"\begin{bmatrix}.5&1\\2&0\end{bmatrix}",
        ),
        ("11_2", "11_{2}"),
        (r"1.5 \times 10^3", "1500"),
        ("1,2", "2, 1", r"1 \text{ and } 2", "x = 1, x = 2", "1 or 2"),
        (r"\pm 3", "3, -3"),
        (r"(-\infty, 3]", r"\left(-\infty,3\right]", r"x \in (-\infty, 3]"),
        (r"x \geq 3", r"x\ge 3", "x≥3"),
        (r"\frac{\pi}{3}", "π/3"),
    ],
)
def test_equal_expressions_have_one_form(forms):
    assert len({normal_expression(form) for form in forms}) == 1
    assert len({read_answer(rf"\boxed{{{form}}}", "boxed") for form in forms}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("1,2", "2"), ("3, 5, 7", "7"), ("-2,1", "1"), ("(1,2)", "(2,1)"), ("[1,2)", "(1,2)")),
        *(("11_2", "11"), ("2x+3", "2x-3"), ("x^2+2x+1", "(x+1)^2"), ("no", "on"), ("12x", "12")),
        *((r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), ("x", "X")),
    ],
)
def test_different_expressions_differ(one, other):
    assert not equal("boxed", rf"\boxed{{{one}}}", rf"\boxed{{{other}}}")


@pytest.mark.parametrize(
    "reply",
    [
        *(r"\boxed 45", "The answer is $45$.", r"\boxed{004} ... \boxed{45}"),
        *(r"therefore\boxed{45}., but **Final Answer** \boxed{45}", r"\boxed{45} then \boxed{"),
        r"Final Answer: The final answer is $45$. I hope it is correct.",
    ],
)
def test_where_an_expression_stands(reply):
    assert equal("boxed", r"\boxed{45}", reply)


def test_boxes_side_by_side_are_a_list():
    assert equal("boxed", r"\boxed{2,3}", r"\boxed{2} and \boxed{3}")


LATEX = st.text("\\{}[]()$^_,.-+=/!&#* \n0123456789abIAxfrctqpie" + string.ascii_uppercase[:6])
PIECES = st.lists(
    st.sampled_from(
        [
            *(r"\boxed{", r"\frac", r"\sqrt", "}", "{", "^", "12", "9" * 80, "-", "answer is"),
            *("####", r"\text{", "x", "(", ",", r"\pm", r"\cup", "!", "\\\\", r"\begin{pmatrix}"),
            *("/0", "e9"),
        ]
    )
).map("".join)


@settings(max_examples=60, deadline=None)
@given(LATEX | PIECES)
def test_nothing_that_a_model_writes_is_an_error(text):
    for kind in ("number", "letter", "boxed"):
        read_answer(text, kind)
    normal_expression(text)


@pytest.mark.parametrize(
    "piece", ["a ", r"\text{", "(", "1 ", "answer is ", "\nQ: ", r"\boxed{", "9", "the ", "2^"]
)
def test_endless_replies_are_read_in_time(piece):
    begin = time.process_time()
    for kind in ("number", "letter", "boxed"):
        read_answer(piece * (4000 // len(piece)), kind)
    normal_expression(piece * (4000 // len(piece)))
    assert time.process_time() - begin < 2
