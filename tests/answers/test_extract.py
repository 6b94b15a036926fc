"""One long table: every extraction rule has its rows here."""

from __future__ import annotations

import pytest

from spinerl.answers import extract_answer
from spinerl.errors import InputError

CAPITALS = ("Paris", "London", "New York City", "York")

# fmt: off
TABLE = [
    # --- boxes
    ("math", r"So it is \boxed{42}.", "42"),
    ("math", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("math", r"\boxed{\frac{\sqrt{3}}{\sqrt{2 + \sqrt{5}}}}", r"\frac{\sqrt{3}}{\sqrt{2 + \sqrt{5}}}"),
    ("math", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("math", r"\boxed{\left\{ x \mid x > 2 \right\}}", r"\left\{ x \mid x > 2 \right\}"),
    ("math", r"first \boxed{1}, then \boxed{2}", "2"),                           # several boxes: the last one
    ("math", r"\boxed{x = \boxed{3}}", "3"),                                     # nested: the innermost of the last
    ("math", r"\boxed{1} and then \boxed{2", None),                              # an unclosed last box
    ("math", r"\boxed{", None),
    ("math", r"\boxed", None),
    ("math", r"\boxed{}", None),
    ("math", r"\boxed{ }", None),
    ("math", r"\boxed{?}", None),
    ("math", r"\boxed{...}", None),
    ("math", r"\boxed{None}", None),
    ("math", r"\boxed{\text{N/A}}", None),
    ("math", r"\boxed 5.", "5"),
    ("math", r"$\boxed 5$", "5"),
    ("math", r"$\boxed5$", "5"),
    ("math", r"\boxed {7}", "7"),
    ("math", r"\boxed{\$18.90}", r"\$18.90"),
    ("math", r"\boxed{$x+1$}", "x+1"),
    ("math", r"\boxed{50\%}", r"50\%"),
    ("math", r"\boxed{\text{Evelyn}}", "Evelyn"),
    ("math", r"\boxed{\textbf{(B)}}", "(B)"),
    ("math", r"\boxed{5 \text{ cm}}", r"5 \text{ cm}"),
    ("math", r"\boxed{(-\infty, 2) \cup [3, \infty)}", r"(-\infty, 2) \cup [3, \infty)"),
    ("math", r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ("math", r"\boxed{42}" + " and more words" * 3000, "42"),
    ("math", r"\boxed{" + "1" * 600 + "}", None),                                # longer than the cap
    ("math", r"\boxed{" + "1" * 5000 + "}", None),
    # --- answer tags
    ("math", r"<answer>12</answer>", "12"),
    ("math", r"\boxed{3} <answer> \boxed{12} </answer>", "12"),
    ("math", r"<answer>3</answer> no: \boxed{12}", "12"),
    ("math", r"<answer></answer>", None),
    ("math", r"half a tag </answer> \boxed{2}", "2"),
    # --- answer phrases
    ("math", "The answer is 42.", "42"),
    ("math", "The answer is $\\frac{3}{4}$.", r"\frac{3}{4}"),
    ("math", "the final answer is: $2\\sqrt{5}$. I hope it is correct.", r"2\sqrt{5}"),
    ("math", "Therefore, the answer is 3.5 and we are done.", "3.5"),
    ("math", "The answer is 1,234.", "1,234"),
    ("math", "Answer: \\(x+1\\)", "x+1"),
    ("math", "**Answer:** 17", "17"),
    ("math", "**Final Answer**\n\n\\[ 12 \\]", r"12"),
    ("math", "**Final Answer:** $9$", "9"),
    ("math", "#### 72", "72"),
    ("math", "The answer is 5. Wait, the answer is 6.", "6"),                    # the last phrase
    ("math", "The solutions: the answer is $3$ and $5$.", "3, 5"),
    ("math", "The answer is $1$, $2$ or $3$.", "1, 2, 3"),
    ("math", "The answer is $18.90.", "$18.90"),
    ("math", "The answer is 42 apples.", "42 apples"),
    ("math", "The answer is clearly $7$, as shown.", "7"),
    ("math", "The answer is probably around 7 in total", "7"),
    ("math", "The answer is x = 5.", "x = 5"),
    ("math", "The answer is\n\n$$\\frac{1}{3}$$", r"\frac{1}{3}"),
    ("math", "The correct answer is therefore east.", "therefore east"),
    ("math", "The answer is hard to find without knowing much more of it.", None),
    ("math", "My answer is (1, 2).", "(1, 2)"),
    ("math", "The answer is not yet known", "not yet known"),
    # --- without box or phrase
    ("math", "42", "42"),
    ("math", "$42$", "42"),
    ("math", "Adding up:\n12 + 30 = 42", "42"),
    ("math", "We get\n$$x = \\frac{7}{2}$$", r"x = \frac{7}{2}"),
    ("math", "We get\n\\[ 7 \\]\n", "7"),
    ("math", "There were 12 birds and then 13 more came", None),                 # a number in prose is no answer
    ("math", "I cannot say.", None),
    ("math", "", None),
    ("math", "   \n ", None),
    ("math", "x", "x"),
    ("math", "(B)", "(B)"),
    # --- reasoning tags
    ("math", r"<think>\boxed{1}</think>\boxed{2}", "2"),
    ("math", r"<think>\boxed{1}</think> I do not know", None),
    ("math", r"<think>so \boxed{1}", None),
    ("math", r"reasoning \boxed{1}</think>The answer is \boxed{3}", "3"),
    ("math", r"<think>a</think>\boxed{1}<think>again", None),
    ("math", r"<think>a</think><think>b</think>\boxed{4}", "4"),
    ("math", r"<thinking>a</thinking>\boxed{4}", "4"),
    ("math", r"if x < 3 then \boxed{4}", "4"),
    # --- plain numbers
    ("number", "12 + 30 = 42", "42"),
    ("number", "She paid $1,234.50 in total.", "1234.50"),
    ("number", "about 3 of the 17 apples", "17"),
    ("number", "The answer is 3 of the 17 apples", "3"),
    ("number", "#### 1,000", "1000"),
    ("number", "it is -5", "-5"),
    ("number", "it is −5", "-5"),
    ("number", "it is 1.5e3", "1500"),
    ("number", r"\boxed{1.5 \times 10^3}", "1500"),
    ("number", r"\boxed{\frac{1}{2}}", "1/2"),
    ("number", "we get 3/4", "3/4"),
    ("number", "exactly .5", ".5"),
    ("number", "a total of 12%", "12"),
    ("number", "€ 20", "20"),
    ("number", "it weighs 12kg", "12"),
    ("number", r"\boxed{12 \text{ apples}}", "12"),
    ("number", r"\boxed{x = 5}", "5"),
    ("number", r"\boxed{x}", None),
    ("number", "no digits here", None),
    ("number", "1\n2\nno digits here", None),                                    # only the last line counts
    ("number", "1/0", None),
    ("number", "0042", "0042"),
    ("number", "The answer is unclear.", None),
    # --- choice letters
    ("choice", r"\boxed{B}", "B"),
    ("choice", "A man walked in. I choose B", "B"),
    ("choice", "I would go with (c).", "C"),
    ("choice", "Thus (A)", "A"),
    ("choice", "So, D.", "D"),
    ("choice", "So A man walked.", None),
    ("choice", "I choose a random one", None),
    ("choice", "so a dog", None),
    ("choice", r"\boxed{(B)}", "B"),
    ("choice", r"\boxed{\text{(B)}}", "B"),
    ("choice", r"\boxed{\textbf{C}}", "C"),
    ("choice", r"\boxed{b}", "B"),
    ("choice", r"\boxed{\text{B. Paris}}", "B"),
    ("choice", r"\boxed{\text{Option D}}", "D"),
    ("choice", r"\boxed{A, C}", None),
    ("choice", r"\boxed{A and C}", None),
    ("choice", r"\boxed{K}", None),
    ("choice", r"\boxed{42}", None),
    ("choice", r"\boxed{}", None),
    ("choice", "The answer is (B).", "B"),
    ("choice", "The answer is B.", "B"),
    ("choice", "The answer is **B**", "B"),
    ("choice", "The correct answer is option B", "B"),
    ("choice", "The correct option is B.", "B"),
    ("choice", "I would pick option (C) here.", "C"),
    ("choice", "Answer: D", "D"),
    ("choice", "Answer: (d)", "D"),
    ("choice", "answer: d", "D"),
    ("choice", "The answer is A because it fits.", "A"),
    ("choice", "The answer is a prime number.", None),                           # the article is no letter
    ("choice", "a", None),
    ("choice", "A prime number is what we need.", None),
    ("choice", "It is a question of taste", None),
    ("choice", "Answer: I think it is too early", None),                         # nor is the pronoun
    ("choice", "The answer is A and C.", None),
    ("choice", "B", "B"),
    ("choice", "B.", "B"),
    ("choice", "(B) Paris", "B"),
    ("choice", "B) Paris", "B"),
    ("choice", "C: because of this", "C"),
    ("choice", "Some reasoning.\n\n**C**", "C"),
    ("choice", "Some reasoning.\n\nJ", "J"),
    ("choice", "Beta blockers are indicated.", None),
    ("choice", "", None),
    ("choice", "<answer>E</answer>", "E"),
    # --- yes, no, maybe
    ("yesno", "Yes, because it rises.", "yes"),
    ("yesno", "yes", "yes"),
    ("yesno", "**No**", "no"),
    ("yesno", "No.", "no"),
    ("yesno", "Maybe; the data are mixed.", "maybe"),
    ("yesno", r"\boxed{\text{Yes}}", "yes"),
    ("yesno", r"\boxed{maybe}", "maybe"),
    ("yesno", r"\boxed{42}", None),
    ("yesno", r"\boxed{", None),
    ("yesno", "There is no evidence. The answer is yes.", "yes"),
    ("yesno", "Answer: no", "no"),
    ("yesno", "Long reasoning.\nNo", "no"),
    ("yesno", "No evidence was found in the trial", None),                       # "no" as a determiner
    ("yesno", "It depends", None),
    ("yesno", "", None),
    # --- short text
    ("text", r"\boxed{\text{The Eiffel Tower}}", "eiffel tower"),
    ("text", "The answer is Paris.", "paris"),
    ("text", "Paris", "paris"),
    ("text", "Answer: the  Café!", "cafe"),
    ("text", r"\boxed{!!!}", None),
    ("text", "It was a long and winding road that led them to a place without a name", None),
    ("text", "A long explanation of the whole matter in many words.\nParis", "paris"),
    # --- auto
    ("auto", r"\boxed{42}", "42"),
    ("auto", r"\boxed{\text{east}}", "east"),
    ("auto", "The answer is Paris.", "Paris"),
    ("auto", "The answer is 42 apples", "42 apples"),
    ("auto", "Yes.", "Yes"),
    ("auto", "12+7=19", "19"),
    ("auto", "I am not able to find any answer to this question at all, sorry", None),
    ("auto", "none", None),
]

WITH_CHOICES = [
    ("auto", "The answer is (B).", "B"),
    ("auto", r"\boxed{London}", "B"),
    ("choice", r"\boxed{\text{Paris}}", "A"),
    ("choice", r"\boxed{(C) New York City}", "C"),
    ("choice", "The answer is New York City.", "C"),                             # not also "York"
    ("choice", "The answer is surely London, not elsewhere", "B"),
    ("choice", "The answer is London or Paris", None),
    ("choice", "london", "B"),
    ("choice", "D. York", "D"),
    ("choice", r"\boxed{E}", None),                                              # beyond the options
    ("choice", "The answer is E.", None),
    ("choice", r"\boxed{Rome}", None),
    ("choice", "The answer is a capital city.", None),
]
# fmt: on


@pytest.mark.parametrize(("kind", "text", "expected"), TABLE)
def test_table(kind: str, text: str, expected: str | None) -> None:
    assert extract_answer(text, kind) == expected


@pytest.mark.parametrize(("kind", "text", "expected"), WITH_CHOICES)
def test_table_with_choices(kind: str, text: str, expected: str | None) -> None:
    assert extract_answer(text, kind, choices=CAPITALS) == expected


def test_a_numeric_option_is_recognised_by_value() -> None:
    assert extract_answer(r"\boxed{0.5}", choices=("1/3", "1/2")) == "B"
    assert extract_answer(r"\boxed{0.25}", choices=("1/3", "1/2")) is None


@pytest.mark.parametrize("kind", ["auto", "math", "number", "choice", "yesno", "text"])
def test_a_truncated_response_never_votes(kind: str) -> None:
    assert extract_answer(r"\boxed{42}", kind, truncated=True) is None


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(InputError, match='did you mean "math"'):
        extract_answer("4", "maths")
