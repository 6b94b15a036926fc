"""Stage 5b: what stands around a number.  Units go, scale words multiply, words that change the meaning stay.
docs/answers.md, "Around a number"."""

from __future__ import annotations

import re
from fractions import Fraction

from spinerl.answers._reader import Unreadable, evaluate
from spinerl.answers.numerals import SCALES, scale_of
from spinerl.answers.tidy import unwrap

__all__ = ["compound_quantity", "drop_units", "has_meaning", "scaled", "strip_hedge", "time_of_day"]

_CURRENCY = re.compile(r"\\?\$|[€£¥₹₩₽]|\b(?:USD|EUR|GBP|INR|JPY|CNY|RMB)\b|(?<![A-Za-z])(?:Rs\.?|US)(?=\s*\d)")
_HAS_CURRENCY = re.compile(r"[$€£¥₹₽]|\b(?:EUR|euros?|Euros?|USD)\b")
_UNIT_WORDS = (
    "degrees? celsius fahrenheit radians? dollars? cents? percent(?:age)? pct usd euros? pounds? "
    "units? square cubic cm mm km ft inch(?:es)? feet foot yards? yd miles? mi meters? metres? "
    "centimeters? centimetres? kilometers? kilometres? millimeters? kg mg lbs? oz ounces? grams? kilograms? "
    "liters? litres? ml gallons? seconds? secs? minutes? mins? hours? hrs? days? weeks? months? years? "
    "mph kph hz people students? times points? ways sq kmh ohms? volts? watts? amps? joules? newtons? pascals? "
    "kelvin kwh khz mhz ghz"
)
_UNIT = re.compile(
    r"(?<=[\d}.)a-z\s])\s*(?<![\\A-Za-z])(?:"
    + "|".join(_UNIT_WORDS.split())
    + r")(?:\s*/\s*[a-z]+)?(?:\s*\^\s*\{?\s*-?\d\s*\}?)?\s*\.?$"
)
_NO_UNITS = {"and", "or", "if", "when", "for", "is", "to", "e", "i"}
_NUMBER_THEN_WORDS = re.compile(
    r"^([-+]?\s*(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*/\s*\d+)?)"
    r"(?:\s+(?!(?:and|or|is|are|was|if|so|we|because|but|then|when|which|of|plus|minus|times|to"
    r"|out)\b)[A-Za-z'-]{2,}){1,3}$"
)
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_ONE_TEXT = rf"\\(?:text|mbox|mathrm|textrm|hbox)\s*\{{(?:[^{{}}\d^]|\^\{{?-?\d\}}?)*\}}{_POWER}"
_TEXT_UNIT = re.compile(
    rf"(?<=[\d}}).a-zA-Z])\s*(?:\\cdot\s*)?(?:{_ONE_TEXT}(?:\s*/\s*{_ONE_TEXT})?"
    rf"|\\frac\s*\{{\s*(?:{_ONE_TEXT}\s*)+\}}\s*\{{\s*(?:{_ONE_TEXT}\s*)+\}})\s*$"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[a-z]{2}")  # every unit of `_UNIT` begins so
_PERCENT = re.compile(r"\\?%")
_CDOT_END = re.compile(r"(?<=[\d}])\s*\\cdot$")
_SIGN_UNIT = re.compile(
    r"(?<=\d)\s*(?:(?:\\text\s*\{\s*[kM]\s*\}|[kM])\s*)?\\Omega\s*$|(?<=\d)\s*(?:[kcm]?m|ft|mi|in)\s*/\s*(?:s|h|hr"
    r"|min|sec)(?:\s*\^\s*\{?2\}?)?$|(?<=[\d}])\s*\\degree\s*[CFK]$|(?<=\d)\s*\\degree\s*\{?[CF]\}?$"
)
_TEXT_HOLDS = re.compile(r"\{([^{}]*)\}")

# words around a number that make it another answer
_MEANING = re.compile(
    r"\b(?:am|pm|a\.m|p\.m|north\w*|south\w*|east\w*|west\w*|NE|NW|SE|SW|up\w*|down\w*|left|right|clockwise"
    r"|counter-?clockwise|anti-?clockwise|more|less|fewer"
    r"|above|below|before|after|ago|earlier|later|ahead|behind|bc|ad|bce|ce|b\.c|a\.d|remainder|profit|loss|gain"
    r"|lost|won|older|younger|taller|shorter|longer|"
    r"higher|lower|faster|slower|larger|smaller|bigger|increase\w*|decrease\w*|forwards?|backwards?|inside|outside"
    r"|positive|negative|debit|credit|deposit|withdrawal)\b",
    re.I,
)
_SCALE_WORDS = sorted(SCALES, key=len, reverse=True)
_SCALED = re.compile(
    rf"^\s*(?P<number>[-+]?\s*(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*\\frac\s*\{{?\d+\}}?\s*\{{?\d+\}}?"
    rf"|\s+\d+/\d+)?)\s*-?\s*(?P<scale>(?:(?:{'|'.join(_SCALE_WORDS)})s?(?![a-z])\s*){{1,3}})(?P<rest>[^\d=<>^_+*/]*)$",
    re.I,
)
_HEDGE = re.compile(
    r"^\s*(?:(?:\\(?:text|mbox|mathrm|textrm)\s*\{\s*)?(?:\\approx|\\sim|\\simeq|\\cong|about|approximately"
    r"|approx\.?|roughly|around|nearly|exactly|almost|circa|ca\.)(?![A-Za-z])\s*\}?\s*)+(?=\S)",
    re.I,
)
_WORD_NUMBER = re.compile(
    r"^\s*(?P<number>.*\d[^()]*?)\s*\(\s*(?:(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen"
    r"|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|and|half"
    r"|halves|thirds?|quarters?)[\s-]*)+\)\s*$",
    re.I,
)
_TIME = re.compile(r"^\s*(\d{1,2})(?:[:.](\d\d))?\s*(?P<half>[ap])\s*\.?\s*m\s*\.?\s*$", re.I)

_COMPOUND_UNITS = {
    "hour": "hours? hrs? h",
    "minute": "minutes? mins? m",
    "second": "seconds? secs? s",
    "day": "days? d",
    "week": "weeks? wks?",
    "month": "months?",
    "year": "years? yrs?",
    "foot": "feet foot ft",
    "inch": "inches inch in",
    "yard": "yards? yds?",
    "mile": "miles? mi",
    "pound": "pounds? lbs?",
    "ounce": "ounces? oz",
    "meter": "meters? metres? m",
    "centimeter": "centimeters? centimetres? cm",
    "kilometer": "kilometers? kilometres? km",
    "kilogram": "kilograms? kg",
    "gram": "grams? g",
    "dollar": "dollars?",
    "cent": "cents?",
    "gallon": "gallons?",
    "quart": "quarts?",
    "pint": "pints?",
    "liter": "liters? litres?",
    "milliliter": "milliliters? ml",
    "dime": "dimes?",
    "nickel": "nickels?",
    "quarter": "quarters?",
    "penny": "pennies penny",
}
_UNIT_NAMES = [(name, re.compile("|".join(forms.split()), re.I)) for name, forms in _COMPOUND_UNITS.items()]
_PART = re.compile(r"\s*(?:,|\band\b)?\s*([-+]?\d[\d,]*(?:\.\d+)?)\s*([A-Za-z]+)\.?(?![A-Za-z])")


def drop_units(text: str) -> str:
    """Currency, percent, degrees and trailing units go: the question fixes them, and models write them or not.

    >>> drop_units("5 \\\\text{ cm}"), drop_units("4 miles north")
    ('5', '4 miles north')
    """
    if _HAS_CURRENCY.search(text):
        bare = _CURRENCY.sub("", text).strip()
        euro = re.match(r"^([-+]?\d{1,3}(?:\.\d{3})*|[-+]?\d+),(\d{1,2})(?!\d)", bare)
        if euro is not None:
            text = euro[1].replace(".", "") + "." + euro[2] + bare[euro.end() :]
    text = _CURRENCY.sub("", text).strip()
    if "%" in text:
        text = _PERCENT.sub(" ", text).strip()
    for _ in range(6):
        before = text
        text = _without_unit(text)
        if text == before:
            break
    if text.endswith("\\degree") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = text[: -len("\\degree")].rstrip()
    words = _NUMBER_THEN_WORDS.match(text)
    if words is not None and not has_meaning(text):
        text = words[1]
    return text


def _without_unit(text: str) -> str:
    """Without the last unit.  A pattern is searched for where the text holds what it needs: most answers hold none."""
    if "text" in text or "mbox" in text or "mathrm" in text or "hbox" in text:
        match = _TEXT_UNIT.search(text)
        if match is not None and _is_unit_text(match[0]):
            text = text[: match.start()].rstrip()
    if "/" in text or "\\Omega" in text or "\\degree" in text:
        sign = _SIGN_UNIT.search(text)
        if sign is not None:
            text = text[: sign.start()].rstrip()
    if _WORD.search(text) is not None:
        unit = _UNIT.search(text)
        if unit is not None and _is_quantity(text[: unit.start()]):
            text = text[: unit.start()].rstrip()
    return _CDOT_END.sub("", text) if text.endswith("\\cdot") else text


def _is_unit_text(found: str) -> bool:
    held = [content.strip(" ,.") for content in _TEXT_HOLDS.findall(found)]
    return (
        not any(content in _NO_UNITS or _MEANING.search(content) for content in held)
        and _SCALED.match("1 " + " ".join(held)) is None
    )


def _is_quantity(text: str) -> bool:
    """A number, perhaps after "x =": what may carry a unit that is not in \\text{...}."""
    bare = re.sub(r"\\[A-Za-z]+|^\s*[A-Za-z]\w*\s*=", "", text)
    has_number = any(c.isdigit() for c in text) or "\\pi" in text
    return has_number and not any(c.isalpha() for c in bare)


def has_meaning(text: str) -> bool:
    """Whether words around a number make it another answer: "10 am", "4 miles north", "3 more", "500 BC"."""
    plain = unwrap(text)
    return re.match(r"^\s*(?:\\?\$)?\s*[-+]?[\d.]", plain) is not None and _MEANING.search(plain) is not None


def scaled(text: str) -> str | None:
    """The number that a number with scale words is, or None: "1.2 billion" is 1200000000.

    >>> scaled("1.2 billion"), scaled("3 dozen eggs"), scaled("5")
    ('1200000000', '36', None)
    """
    if not any(c.isalpha() for c in text):
        return None
    plain = unwrap(_CURRENCY.sub("", text))
    match = _SCALED.match(plain)
    if match is None or _MEANING.search(match["rest"]) or len(match["rest"].split()) > 3 or "\\" in match["rest"]:
        return None
    try:
        value = evaluate(match["number"])
    except Unreadable:
        return None
    return str(value * scale_of(match["scale"])) if isinstance(value, Fraction) else None


def strip_hedge(text: str) -> str:
    """Without "about" or "\\approx" in front and without the number in words behind it.

    >>> strip_hedge("\\\\approx 5"), strip_hedge("7 (seven)")
    ('5', '7')
    """
    hedge = _HEDGE.match(text)
    if hedge is not None:
        text = text[hedge.end() :]
    if text.endswith(")"):
        match = _WORD_NUMBER.match(text)
        if match is not None:
            return match["number"]
    return text


def time_of_day(text: str) -> str | None:
    """The key of a time with am or pm: "10 am" and "10:00 a.m." are one."""
    if "m" not in text.casefold()[-4:]:
        return None
    match = _TIME.match(unwrap(text))
    return None if match is None else f"time:{int(match[1])}:{match[2] or '00'} {match['half'].lower()}m"


def compound_quantity(text: str) -> str | None:
    """The key of a quantity in several units: "5 ft 6 in", "2 hours and 30 minutes"; None for other texts.

    >>> compound_quantity("2 hours and 30 minutes") == compound_quantity("2 hr 30 min")
    True
    """
    plain = unwrap(text)
    if sum(c.isalpha() for c in plain) < 2:
        return None
    parts, position = [], 0
    while (match := _PART.match(plain, position)) is not None:
        unit = next((name for name, forms in _UNIT_NAMES if forms.fullmatch(match[2])), None)
        if unit is None:
            return None
        parts.append(f"{Fraction(match[1].replace(',', ''))} {unit}")
        position = match.end()
    return "quantity:" + ",".join(parts) if len(parts) > 1 and not plain[position:].strip(" .") else None
