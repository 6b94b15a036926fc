"""Stage 5a: one spelling of the same LaTeX.  docs/answers.md, "Stage 5"."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["tidy_math", "unwrap"]

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "\\div ",
    "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "≤": "\\le ",
    "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∓": "\\mp ", "°": "\\degree ", "θ": "\\theta ",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "∅": "\\emptyset ", "⟨": "\\langle ",
    "⟩": "\\rangle ", "“": '"', "”": '"', "℃": "\\degree C", "℉": "\\degree F", "Ω": "\\Omega ", "\u2126": "\\Omega ",
    "∨": "\\lor ", "∧": "\\land ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}",
    "≈": "\\approx ", "…": "...", "∣": "\\mid ",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}", "⅘": "\\frac{4}{5}",
    "⅙": "\\frac{1}{6}", "⅚": "\\frac{5}{6}",
    "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
    "⁄": "/", "％": "%", "，": ", ", "（": "(", "）": ")", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")

_SPACING = re.compile(
    r"(?<!\\)\\[,;:!>]|\\(?:quad|qquad|thinspace|enspace|displaystyle|textstyle|limits|nolimits|hspace\{[^{}]*\}"
    r"|phantom\{[^{}]*\}"
    r"|large|Large|LARGE|huge|Huge|small|normalsize|footnotesize|scriptsize|tiny|boldmath)(?![A-Za-z])|~"
)
_SIZERS = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|middle)(?![A-Za-z])\s*\.?")
_DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\(?:circ|degrees?)(?![A-Za-z])|\b(?<=\d) ?deg\b")
# What a pattern needs one of (a text without is not searched: most answers hold none), the pattern, its replacement.
_RENAMED = (
    (("frac",), re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (("binom",), re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (("\\leq", "<="), re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])|<="), r"\\le "),
    (("\\geq", ">="), re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])|>="), r"\\ge "),
    (("\\neq", "!="), re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (("\\lt",), re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (("\\gt",), re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (("\\varnothing", "\\O"), re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (("vert",), re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (("\\lbrace",), re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (("\\rbrace",), re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (("\\langle",), re.compile(r"\\(?:langle)(?![A-Za-z])"), "("),
    (("\\rangle",), re.compile(r"\\(?:rangle)(?![A-Za-z])"), ")"),
    (
        ("{,}",),
        re.compile(r"(?<=[1-9])\{,\}(?=\d{3}(?!\d))|(?<=[1-9]\d)\{,\}(?=\d{3}(?!\d))|(?<=\d{3})\{,\}(?=\d{3}(?!\d))"),
        ",",
    ),
    (("{,}",), re.compile(r"(?<=\d)\{,\}(?=\d)"), "."),  # TeX for a decimal comma
    (("{,}",), re.compile(r"\{,\}"), ","),
    (("{:}", "\\colon"), re.compile(r"\{:\}|\\colon(?![A-Za-z])"), ":"),
    (("\\lor", "\\vee"), re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), r" \\text{or} "),
    (("\\land", "\\wedge"), re.compile(r"\\(?:land|wedge)(?![A-Za-z])"), r" \\text{and} "),
    (("dots",), re.compile(r"\\(?:ldots|dots|cdots|dotsc)(?![A-Za-z])"), "..."),
    (
        ("\\R", "\\reals", "\\math"),
        re.compile(r"\\(?:R|reals)(?![A-Za-z])|\\mathbb\s*R(?![A-Za-z])|\\mathbf\s*\{R\}"),
        r"\\mathbb{R}",
    ),
    (("10",), re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))"), r"\\times "),
    (("color",), re.compile(r"\\textcolor\s*\{[a-zA-Z!0-9]*\}|\\color\s*\{[a-zA-Z!0-9]*\}"), ""),
    (("\\frac",), re.compile(r"(?<![A-Za-z\]}^_])\{(\d+)\}(?=\s*\\frac)"), r"\1"),
    (("\\frac",), re.compile(r"(?<=\d)\s*\{(\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))\}"), r"\1"),
    (("\\bf", "\\rm", "\\it", "\\sf", "\\tt"), re.compile(r"\\(?:bf|rm|it|sf|tt)(?![A-Za-z])\s*"), ""),
)
_MAY_RENAME = re.compile(r"[\\{=]|10")  # every pattern needs one of these
_LATEX_SPACE = re.compile(r"(?<!\\)\\(?=\s)")
_DOLLARS = re.compile(r"^\s*(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])\s*$", re.S)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|boldsymbol|bm|operatorname|emph"
    r"|underline|boxed|fbox)\*?\s*\{([^{}]*)\}"
)


def tidy_math(text: str) -> str:
    """One spelling of the same LaTeX: unicode signs, sizes, spacing, dollars, fraction commands, colors.

    >>> tidy_math("$\\\\dfrac{1}{2}$"), tidy_math("3{,}5"), tidy_math("58{,}500")
    ('\\\\frac{1}{2}', '3.5', '58,500')
    """
    if _NOT_ASCII.search(text) is not None:
        for sign, latex in _UNICODE.items():
            if sign in text:
                text = text.replace(sign, latex)
        text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
        text = unicodedata.normalize("NFKC", text)
    text = text.replace("\\$", "$").strip()
    for _ in range(2):
        wrapped = _DOLLARS.match(text)
        if wrapped is None or "$" in wrapped[1]:
            break
        text = wrapped[1].strip()
    if "\\" in text or "~" in text:
        text = _SIZERS.sub("", text)
        text = _SPACING.sub("", text)
        text = _LATEX_SPACE.sub(" ", text)
    if _MAY_RENAME.search(text) is not None:
        for needed, pattern, replacement in _RENAMED:
            if any(part in text for part in needed):
                text = pattern.sub(replacement, text)
    text = _DEGREE.sub(r"\\degree ", text)
    return re.sub(r"\s+", " ", text).strip()


def unwrap(text: str) -> str:
    """Removes \\text{...}, \\mathbf{...} and the like, innermost first; keeps what they hold."""
    if "\\" not in text:
        return text
    for _ in range(8):
        text, count = _WRAPPER.subn(r"\1", text)
        if not count:
            break
    return text
