"""Which spellings fall together by their key, which stay apart, and what abstains."""
# ruff: noqa: E501  (tables)

from __future__ import annotations

import pytest

from spinerl.answers import KINDS, normalize_answer
from spinerl.answers._reader import Unreadable, equation_key, evaluate, value_key
from spinerl.answers.normalize import canonical_key, normalize_text, read_letter
from spinerl.errors import InputError

# Every row is one answer in several spellings.  Rows hold different answers, so no key may occur in two rows.
SAME = [
    # numbers
    [
        "1/2",
        "0.5",
        r"\frac12",
        r"\frac{1}{2}",
        r"\dfrac{1}{2}",
        ".5",
        "0.50",
        "½",
        r"2^{-1}",
        r"\frac{3}{6}",
        "1 / 2",
    ],
    ["50", r"50\%", "50%", "50.0", "$50$", r"\$50", "050", "50 dollars", r"50 \text{ cm}", "50^\\circ"],
    [
        "142",
        "142.0",
        "+142",
        r"\boxed{142}",
        "x = 142",
        r"142\,\text{units}^2",
        "142 apples",
        "{142}",
        "= 142",
    ],
    ["58500", "58,500", r"58,\!500", "58{,}500", "5.85e4", r"5.85 \times 10^4", r"5.85\cdot10^{4}", "58 500"],
    ["11111111100", r"11,\! 111,\! 111,\! 100"],
    ["9/5", r"1\frac{4}{5}", r"1 \frac{4}{5}", "1 4/5", "1.8"],
    ["-3", "−3", "- 3", "-3.", r"-\frac{6}{2}", r"\frac{-6}{2}", r"x=-3"],
    ["1/3", r"0.\overline{3}", r"\frac{1}{3}"],
    ["0.333333"],
    [
        "2",
        r"\sqrt{4}",
        r"\log_2 4",
        r"\log_{2}(4)",
        r"2!",
        r"\binom{2}{1}",
        r"\lfloor 2.7 \rfloor",
        "|-2|",
        r"\sqrt[3]{8}",
    ],
    ["1024", "2^{10}", "2^10", "2**10", "4^5"],
    ["2^{100}", "1267650600228229401496703205376"],
    ["1267650600228229401496703205377"],
    ["0", "0.0", "-0", r"\sqrt{2}-\sqrt{2}", "x-x"],
    ["-1", r"e^{i\pi}", "i^2", r"\cos \pi"],
    ["1", r"\sin 90^\circ", r"\sin^2 x + \cos^2 x", r"\tan(\frac{\pi}{4})"],
    ["1.5", r"\lceil 1.2 \rceil - \frac12", "1 1/2"],
    # irrational constants and expressions
    [
        r"2\sqrt{5}",
        r"\sqrt{20}",
        r"2 \sqrt5",
        "2sqrt(5)",
        "2√5",
        r"\frac{10}{\sqrt{5}}",
        r"20^{1/2}",
        r"20^{0.5}",
    ],
    ["1.4142", "1.41420"],
    [r"\sqrt{2}", r"\frac{2}{\sqrt2}", "2^{1/2}"],
    [r"\pi", "π", "pi"],
    ["3.14159"],
    [r"\frac{\pi}{6}", r"\pi/6", r"\frac{1}{6}\pi"],
    ["(a+5)(b+2)", "ab + 2a + 5b + 10", r"(b+2)\cdot(a+5)"],
    ["x^2", "x²", r"x \cdot x", "x*x"],
    ["x"],
    ["X"],
    [r"\sqrt{x^2}", "|x|", r"\lvert x \rvert"],
    [r"\cot x", r"\frac{\cos x}{\sin x}", r"1/\tan x"],
    ["6-5i", "6 - 5i", "-5i+6", r"6-5\imath"],
    ["p - q", "p-q", "-q+p"],
    ["204_5", "204_{5}"],
    ["204"],
    ["x_1+x_2", "x_{1} + x_{2}"],
    [r"\ln x^3 - \ln x^2 + \ln 8 - \ln 4", r"\ln x^3 - \ln x^2 + \ln 2"],
    # tuples, intervals, sets, lists
    [r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", r"(3.0, 0.5\pi)", r"\langle 3, \frac\pi2\rangle"],
    ["(1,2)", "( 1, 2 )", r"\left(1,2\right)"],
    ["(2,1)"],
    ["[1,2]", r"x \in [1,2]", r"\left[1, 2\right]"],
    ["[1,2)"],
    [r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)", r"(-∞,2)∪(3,+∞)"],
    [
        "1,-2",
        "-2, 1",
        r"\{1,-2\}",
        r"\{-2, 1\}",
        r"1 \text{ and } -2",
        r"1 \text{ or } -2",
        "x = 1, x = -2",
        "1 and -2",
    ],
    [r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \mp \sqrt{19}", r"x = 1 \pm \sqrt{19}"],
    [r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"],
    ["3, 5, 7", "7,5,3", r"\{3,5,7\}"],
    ["3,500", "3500"],
    ["(3,500)"],
    [r"\emptyset", r"\varnothing", r"\{\}", "∅"],
    [r"\infty", "∞", r"+\infty"],
    [r"-\infty"],
    # matrices
    [r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix}-\frac13\\\frac23\end{bmatrix}"],
    [r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]"],
    [r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}"],
    [r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"],
    # relations
    ["y = 2x + 3", "2x+3", "f(x) = 3 + 2x"],
    ["5x - 7y + 11z + 4 = 0", "-5x+7y=11z+4", "10x - 14y + 22z = -8"],
    ["5x - 7y + 11z = 4"],
    ["x^2 + y^2 = 4", "4 = y^2 + x^2"],
    ["x^2 + y^2 = 5"],
    # words and letters
    [r"\text{east}", "east", "East.", r"\textbf{East}", r"\mathrm{east}"],
    ["yes", "Yes", r"\text{Yes.}"],
    [r"\text{(B)}", "B", "(B)", r"\textbf{(B)}"],
    ["b"],
    ["2h"],
    ["2m", "2 m", "m+m"],
    ["5xs"],
    ["2e", r"2\mathrm{e}"],
    ["3 mi", "3"],
    ["7", "7 cm", "7cm", r"7 \text{ m}", "x = 7 cm", "7 square feet", "7 km/h", "7 in", "7°"],
    [r"7\pi", r"7\pi \text{ cm}^2", "7π cm^2"],
    [r"30^\circ, 60^\circ", "60,30"],
    [r"x \in \emptyset \cup A"],
    [r"(1, 2), (3, 4)", r"\{(3,4),(1,2)\}"],
    ["1, , 2"],
    [r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}"],
    ["x ="],
    ["a + b = c = d"],
    ["x^2 = 0", "5x^2 = 0"],
    ["$$\\frac{17}{19}$$", "\\[17/19\\]", "$17/19$"],
    ["x < y < z"],
    ["x < y > z"],
    ["1 < 2"],
    ["x < y"],
    ["x > 3 < 4"],
    ["red and blue", "Red and blue."],
    [r"5 \text{ red and } 3 \text{ blue}"],
    ["12", "(B) 12", r"\textbf{(B)}\ 12", r"\textbf{(B) } 12"],
    ["25", "xy=25", "AB = 25", r"\angle ABC = 25^\circ", "Area = 25", "20+5=25", "25 = x"],
]


@pytest.mark.parametrize("row", SAME, ids=lambda row: row[0])
def test_spellings_share_one_key(row: list[str]) -> None:
    keys = {spelling: canonical_key(spelling, "auto") for spelling in row}
    assert None not in keys.values()
    assert len({key.text for key in keys.values() if key}) == 1, keys


def test_different_answers_never_share_a_key() -> None:
    seen: dict[str, str] = {}
    for row in SAME:
        key = canonical_key(row[0], "auto")
        assert key is not None
        assert key.text not in seen, (row[0], seen.get(key.text))
        seen[key.text] = row[0]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        " ",
        "None",
        "none",
        "N/A",
        "?",
        "...",
        r"\text{None}",
        r"\text{ }",
        "-",
        r"\quad",
        "9" * 513,
        "{" * 40,
    ],
)
def test_what_abstains(answer: str | None) -> None:
    assert canonical_key(answer, "auto") is None


@pytest.mark.parametrize(
    ("answer", "kind", "shown"),
    [
        ("142.0", "auto", "142"),
        ("025", "number", "25"),
        ("$1,234.50", "number", "2469/2"),
        (r"\left( 3, \dfrac{\pi}{2} \right)", "math", r"(3,\frac{\pi}{2})"),
        ("p - q", "math", "p-q"),
        ("(b)", "choice", "B"),
        ("B. because", "choice", "B"),
        ("Yes.", "yesno", "yes"),
        ("The  Café", "text", "cafe"),
        (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", "math", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ],
)
def test_readable_forms(answer: str, kind: str, shown: str) -> None:
    assert normalize_answer(answer, kind) == shown
    assert normalize_answer(shown, kind) == shown  # a normal form is its own normal form


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("", "auto"),
        ("x", "number"),
        ("42", "choice"),
        ("A, C", "choice"),
        ("perhaps", "yesno"),
        ("!", "text"),
        ("None", "text"),
    ],
)
def test_gold_that_cannot_be_read_is_refused(answer: str, kind: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        normalize_answer(answer, kind)


def test_unknown_kind_is_refused() -> None:
    assert "auto" in KINDS
    with pytest.raises(InputError, match='did you mean "number"'):
        normalize_answer("1", "numbers")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The cat", "cat"),
        ("A", "a"),
        ("an apple a day", "apple day"),
        ("O'Brien's", "obriens"),
        ("1,000.5 km", "1000.5 km"),
        ("naïve — résumé", "naive resume"),
        ("ＡＢＣ", "abc"),
        ("Straße", "strasse"),
        ("हिन्दी", "हिन्दी"),
        ("...", ""),
    ],
)
def test_text_rules(text: str, normal: str) -> None:
    assert normalize_text(text) == normal


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(c)", "C"),
        (r"\text{(D)}", "D"),
        ("Option E", "E"),
        ("a", "A"),
        ("A: yes", "A"),
        ("AB", None),
        ("K", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", "1 +", "(1", "1)", "1 2", "1/0", r"\frac{1}", r"\foo", "x <", r"\sqrt[0]{2}", r"\sqrt[\pi]{2}", r"\sqrt[1.5]{2}",
        "9^{9^{9}}", "x^{2000}", r"\pi^{x^{900}} 10^{299}\pi 10^{299}", "2000!", r"\pi!", r"\binom{x}{2}", r"\binom{2}{3}",
        r"\lfloor \pi \rfloor", r"\sin^{-1} x", "9" * 500, "((((((((((((((((((((((((((((1))))))))))))))))))))))))))))",
        "2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2^{2}}}}}}}}}}}}}}}}}}}}}}}}}}",
        r"\sqrt{2} - \sqrt{2} + 10^{-40}\pi", r"0.1\overline{x}", "x^{1/99}", "1+" * 300 + "1", "1.2 1/2",
        "1 3/2", r"\sin 10^{9}", r"\sqrt{}", r"\ln 0", "2^{x^{99999}}", r"\frac1.5", r"\sqrt.5", "x^" * 30 + "2", r"1\frac{x}{2", r"x^{10^{200}}", r"(10^{290}\pi)^{x}", "2^{1/99}",
    ],
)  # fmt: skip
def test_outside_the_reader(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (r"\sin 2x", r"2 \sin x \cos x"), (r"\log x", r"\log x"), ("x^{1/3}", r"\sqrt[3]{x}"), ("-x^2", "-(x^2)"),
        ("2^{3^2}", "512"), ("1-2-3", "-4"), ("1/2/2", "1/4"), (r"6 \div 2", "3"), (r"\alpha_1 + \alpha_1", r"2\alpha_1"),
        (r"\alpha\beta", r"\beta\alpha"), ("2^{x}2^{y}", "2^{x+y}"), (r"\sqrt{x}\sqrt{x}", "x"), ("--1", "1"), ("3!!", "720"),
        (r"\log_{10} 100", "2"), (r"\exp(2)", "e^2"), ("|x|+|y|", "|y|+|x|"), ("f(x+1)", "fx + f"), ("arcsin(1)", r"\pi/2"),
        ("2^{3}!", "40320"), ("2^3!", "64"), (r"\sqrt[3]{-8}", "-2"), ("(-8)^{1/3}", "-2"), ("x^{-2}", r"\frac{1}{x^2}"),
        ("x^-1", "1/x"), ("i", r"\sqrt{-1}"), (r"\e", "e"), (r"\sqrt{\frac14}", "0.5"), (r"\frac ab", "a/b"), ("[1+2]3", "9"),
        (r"\sin |x|", r"\sin(|x|)"), (r"\abs(3)", "3"), (r"\frac\pi2", r"\pi/2"), (r"\sin x \cos y", r"\cos y \sin x"), (r"2\frac{x}{3}", r"\frac{2x}{3}"), (r"\frac{{1}}{2}", "0.5"), (r"30\degree", "30"),
        (r"\ln 1", "0"), ("sqrt 4", "2"), (r"3\frac{4}{3}", "4"),
    ],
)  # fmt: skip
def test_inside_the_reader(text: str, same: str) -> None:
    assert value_key(evaluate(text)) == value_key(evaluate(same))


def test_an_equation_without_variables_has_no_key() -> None:
    with pytest.raises(Unreadable):
        equation_key(evaluate("1"))
    with pytest.raises(Unreadable):
        equation_key(evaluate(r"\pi"))
