"""Stage 1 of reading: what of a response may hold its answer.  Thoughts, turns that are not the model's and closing
pleasantries go.  The tables are those of docs/answers.md, "Stage 1"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Visible", "after_last_thought", "opens_thought", "run_on_places", "strip_pleasantries", "strip_thoughts"]

_MARK = "\x1f"  # stands where a thought stood whose end begins the final part of a response

# name, opening form, closing form; after the end of a "final" one only what follows it counts
_FINAL_THOUGHTS = (
    (r"<think\s*>", r"</think\s*>"),
    (r"<thinking\s*>", r"</thinking\s*>"),
    (r"<seed:think\s*>", r"</seed:think\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|think\|>", r"<\|/think\|>"),
    (r"<unused94>", r"<unused95>"),
    (
        r"<\|channel\|>\s*(?:analysis|commentary)[^<]{0,80}<\|message\|>",
        r"<\|channel\|>\s*final[^<]{0,80}<\|message\|>",
    ),
    (r"assistantanalysis(?=[A-Z])", r"assistantfinal"),
    (r"\AHere is my thought process:", r"Here is my response:"),
)
# a thought of these kinds may also follow the answer: its text goes, what surrounds it stays
_OTHER_THOUGHTS = ("thought", "thoughts", "reasoning", "reflection", "scratchpad", "analysis", "thought_process")
_THOUGHT = re.compile(
    rf"(?P<open>{'|'.join(opening for opening, _ in _FINAL_THOUGHTS)})"
    rf"|(?P<close>{'|'.join(closing for _, closing in _FINAL_THOUGHTS)})"
    rf"|(?P<open_other><(?:{'|'.join(_OTHER_THOUGHTS)})\s*>)"
    rf"|(?P<close_other></(?:{'|'.join(_OTHER_THOUGHTS)})\s*>)"
    r"|(?P<answer><answer>)",
    re.I,
)
# special tokens vanish in decoding: of the channel markers only these words are left
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z])")

# what ends the model's turn where special tokens are decoded
_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|end_of_text|eot_id|eom_id|end|return|user|end_of_turn|END_OF_TURN_TOKEN)\|>"
    r"|<\|im_start\|>\s*user|<\|start_header_id\|>\s*user|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>|<｜User｜>"
)
_SPECIAL = re.compile(r"<\|[A-Za-z_/]{1,40}\|>|<start_of_turn>|<bos>")

# forms in which prompts begin a question or a turn; a base model goes on with the next one after its answer
_PROMPT_WORDS = (
    "Question",
    "Next question",
    "New question",
    "Problem",
    "Next problem",
    "New problem",
    "Q",
    "Human",
    "User",
    "Student",
    "Input",
    "Instruction",
    "Instructions",
    "Exercise",
    "Example",
    "Context",
    "Passage",
    "Prompt",
    "Task",
    "Puzzle",
    "问题",
    "問題",
    "题目",
    "題目",
    "问",
    "問",
    "用户",
    "例题",
    "質問",
    "질문",
    "문제",
    "Frage",
    "Aufgabe",
    "Nutzer",
    "Pregunta",
    "Problema",
    "Ejercicio",
    "Usuario",
    "Pergunta",
    "Usuário",
    "Domanda",
    "Utente",
    "Utilisateur",
    "Problème",
    "Exercice",
    "Вопрос",
    "Задача",
    "Пользователь",
    "السؤال",
    "سؤال",
    "المستخدم",
    "Vraag",
    "Pytanie",
    "Soru",
    "Câu hỏi",
    "प्रश्न",
)
_WORDS = "|".join(sorted(_PROMPT_WORDS, key=len, reverse=True))
_RUN_ON_LINE = re.compile(
    rf"\n(?!\n)[ \t>]*(?:#+[ \t]*|\*+|\[|<)?(?:(?:{_WORDS})[ \t]*(?:No\.?[ \t]*|#[ \t]*)?\d{{0,4}}[ \t]*(?:\*+|\]"
    rf"|>)?[ \t]*(?:[:：]|\.(?!\w))"
    rf"|(?<=#)[ \t]*(?:{_WORDS})[ \t]*\d{{0,4}}[ \t]*(?=\n)|(?:{_WORDS})(?:[ \t]*\d{{1,4}})?(?:\*\*|\]|>)[ \t]*(?=\n)"
    r"|Q\d{1,3}[.):])"
)
_INLINE = (
    "Question:",
    "Problem:",
    "Human:",
    "User:",
    "Q:",
    "Question：",
    "问题：",
    "问题:",
    "題目：",
    "题目：",
    "Pregunta:",
    "Frage:",
    "Pergunta:",
    "Domanda:",
    "Question :",
    "Вопрос:",
)
_INLINE_BEFORE = re.compile(r"(?:[.!?。>)\]}]|[.!?]\*\*)\s{0,3}\Z")

_PLEASANTRY = re.compile(
    r"[\s*_>-]*(?:i (?:really |sincerely )?hope|hope (?:this|that|it|you)|hopefully|(?:please )?(?:let me know"
    r"|feel free|do not hesitate|don['’]t hesitate)"
    r"|(?:if|should) you (?:have|need|want|would|['’]d|require)|is there anything|does (?:that|this|it) make sense"
    r"|any (?:other )?questions|is (?:that|this) clear|got it\?|anything else|do you (?:have|need|want)|would you "
    r"like"
    r"|(?:i['’]m|i am) (?:here|happy|glad|always)|happy to|glad (?:to|i)|thank(?:s| you)|you['’]?(?: a)?re welcome"
    r"|good luck"
    r"|have a (?:great|nice|good|wonderful)|keep (?:up|practicing|going)|great (?:job|question|work)|enjoy|best "
    r"(?:of luck|regards|wishes)"
    r"|cheers|feel free|remember to (?:check|ask)|great question|happy (?:learning|studying|calculating)"
    r"|希望|如果你|如果您|如有|请告诉我|請告訴我|祝|谢谢|謝謝|还有|欢迎|j['’]esp[eè]re|n['’]h[ée]sitez"
    r"|si vous|bonne chance|ich hoffe|lass mich|lassen sie mich"
    r"|falls du|wenn (?:du|sie) (?:noch|weitere|fragen)|viel erfolg|espero|no dude|si tienes|si necesita|¡?buena "
    r"suerte|espero que|se tiver|se precisar|boa sorte"
    r"|spero|non esitare|se hai|buona fortuna|надеюсь|если у вас|если у тебя|удачи"
    r"|お役に立|何か|ご不明|頑張って|도움이|궁금한|더 궁금"
    r"|آمل|أتمنى|إذا كان)",
    re.I,
)
_HOLDS_ANSWER = re.compile(r"\d|\\boxed|\$|####|(?<![A-Za-z'’])[B-HJ](?![A-Za-z'’])|:\s*\S")
_SENTENCE_START = re.compile(r"(?:[.!?。！？](?:\*\*|[\"”])?\s+|[。！？]|\n\s*)(?=\S)")
_DECORATION = re.compile(r"[\s\U0001F300-\U0001FAFF\u2600-\u27BF\uFE0F]+\Z")


class Visible(NamedTuple):
    """A response without its thoughts.  `finished` is False where a thought was still open at the end."""

    text: str
    finished: bool


def strip_thoughts(text: str, in_thought: bool = False) -> Visible:
    """Remove thoughts and special tokens.

    A closing form without an opening one ends a thought that began before the response.  `in_thought`: the prompt
    opened one, so that a response without a closing form holds nothing else.

    >>> strip_thoughts("<think>3?</think>It is 4.").text.strip()
    'It is 4.'
    """
    if not in_thought and not _may_hold_thoughts(text):
        return Visible(text, True)
    parts: list[str] = []
    position = 0
    opened = "open" if in_thought else ""
    if not opened and (bare := _BARE_CHANNEL.match(text)) is not None:
        opened, position = "open", bare.end()
    for match in _THOUGHT.finditer(text):
        form = match.lastgroup or ""
        if form.startswith("open"):
            if not opened:
                parts.append(text[position : match.start()])
                opened = form
        elif form == "answer":
            if opened == "open_other":
                opened, position = "", match.start()
        else:
            if not opened:
                parts.clear()
            parts.append(_MARK if form == "close" else "\n")
            opened, position = "", match.end()
    if not opened:
        parts.append(text[position:])
    return Visible(_without_special_tokens("".join(parts)), not opened)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends in the opening of a thought, so that the response begins inside of one.

    >>> opens_thought("<|im_start|>assistant\\n<think>\\n"), opens_thought("Reason in <think> tags.\\n")
    (True, False)
    """
    end = prompt.rstrip()
    last = None
    for match in _THOUGHT.finditer(end[-200:]):
        last = match
    return last is not None and last.end() == len(end[-200:]) and (last.lastgroup or "").startswith("open")


def _may_hold_thoughts(text: str) -> bool:
    return (
        "<" in text
        or "THINK]" in text
        or "assistantfinal" in text
        or text.startswith("Here is my thought process:")
        or (not text.isascii() and "◁" in text)
        or _BARE_CHANNEL.match(text) is not None
    )


def _without_special_tokens(text: str) -> str:
    if "<" not in text:
        return text
    for match in _TURN_END.finditer(text):
        if text[: match.start()].strip(_MARK + " \t\r\n"):
            text = text[: match.start()]
            break
    return _SPECIAL.sub("\n", text)


def after_last_thought(text: str) -> str:
    """The text behind the last thought whose end begins the final part."""
    return text[text.rfind(_MARK) + 1 :] if _MARK in text else text


def run_on_places(text: str) -> Iterator[int]:
    """Where the text takes up a prompt's own form again ("Question:", "Human:", ...), in order; at most 8 places.

    >>> list(run_on_places("It is 4. Question: What is 3 + 3?"))
    [9]
    """
    if "\n" not in text and ":" not in text and "：" not in text:
        return
    places = []
    for match in _RUN_ON_LINE.finditer(text):
        places.append(match.start())
        if len(places) == 8:
            break
    for form in _INLINE:
        at = text.find(form)
        for _ in range(4):
            if at < 0:
                break
            if _INLINE_BEFORE.search(text[max(0, at - 8) : at]):
                places.append(at)
            at = text.find(form, at + 1)
    for place in sorted(set(places))[:8]:
        if text[:place].strip(_MARK + " \t\r\n*#"):
            yield place


def strip_pleasantries(text: str) -> str:
    """Without closing sentences such as "I hope this helps!" that hold no answer; at most 6 of them go.

    >>> strip_pleasantries("It is 4. I hope this helps! Let me know if you need more.")
    'It is 4.'
    """
    text = text.rstrip()
    for _ in range(6):
        shorter = _DECORATION.sub("", text[-200:])
        if len(shorter) < min(len(text), 200):
            text = text[: len(text) - min(len(text), 200)] + shorter
        tail_start = max(0, len(text) - 400)
        starts = [m.end() for m in _SENTENCE_START.finditer(text, tail_start)]
        if not starts:
            return text
        start = starts[-1]
        sentence = text[start:]
        if not _PLEASANTRY.match(sentence) or _HOLDS_ANSWER.search(sentence):
            return text
        text = text[:start].rstrip()
    return text
