"""Chat templates are programs: whatever one does, the command ends with one line, and good ones render as before."""

from __future__ import annotations

import inspect
import shutil
import time

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spinerl import templates
from spinerl.cli import main
from spinerl.config import PromptConfig, load_config
from spinerl.data import render_all, render_prompt
from spinerl.errors import InputError
from spinerl.templates import TEMPLATE_OPTIONS_TAKEN, apply_template
from spinerl.tiny import model_path
from spinerl.types import Question

QUESTION = Question("1", "2 + 3?")
NEST = "{% if true %}" * 300 + "{% endif %}" * 300


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


# (what the template does, the template, what its line says)
PROGRAMS = {
    "loops": ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 seconds of process"),
    "a range of 10^9": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
    "a huge text": ("{{ 'x' * 10 ** 9 }}", "1 GiB of memory"),
    "texts that double": (
        "{% set n = namespace(s='x' * 99999) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "1 GiB of memory",
    ),
    "a huge list": ("{{ ([0] * 10 ** 9) | length }}", "1 GiB of memory"),
    "a huge power": ("{{ 9 ** (9 ** (9 ** 9)) }}", "2 seconds of process"),
    "a long output": ("{% for i in range(50000) %}{{ 'x' * 99 }}{% endfor %}", "it writes 4,950,000 characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion depth"),
    "deep nesting": (NEST, "Error: too many "),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    "a missing name": ("{{ nothing.at.all }}", "UndefinedError: 'nothing' is undefined"),
    "a missing key": ("{{ messages[7].content }}", "UndefinedError: list object has no element 7"),
    "an import": ("{% import 'os' as os %}", "TypeError: no loader for this environment specified"),
    "an include": ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment specified"),
    "its own refusal": ("{{ raise_exception('roles must alternate') }}", "(roles must alternate)"),
    "an unknown filter": ("{{ 'x' | explode }}", "TemplateAssertionError: No filter named 'explode'., line 1 of it"),
    "an unknown test": ("{{ 'x' is exploding }}", "TemplateAssertionError: No test named 'exploding'., line 1 of it"),
    "a tag not closed": ("\n{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template."),
    "a wrong bracket": ("{{ messages) }}", "TemplateSyntaxError: unexpected ')', line 1 of it"),
    "a way out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError: access to attribute '__class__'"),
    "a change of messages": ("{{ messages.append(1) }}", "SecurityError: access to attribute 'append'"),
    "a text and a number": ("{{ 'x' + 1 }}", "TypeError: can only concatenate str"),
    "an escape": ("{{ raise_exception('\x1b[2J\\n[red]') }}", "(\\x1b[2J [red])"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_template_that_fails_is_one_line(name, tmp_path, capsys):
    program, said = PROGRAMS[name]
    folder = shutil.copytree(model_path(), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(program)
    (tmp_path / "rows.jsonl").write_text('{"question": "2 + 3?"}\n')
    with pytest.raises(SystemExit) as ended:
        main(["data", "show", str(tmp_path / "rows.jsonl"), f"model={folder}"])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.count("\n") == 1
    assert f"the chat template of {folder} refuses these messages (" in printed
    assert said in printed
    assert "prompt.chat_template=off" in printed


def test_after_a_template_that_ends_the_process_others_render(tokenizer):
    for program in ("{{ 9 ** (9 ** (9 ** 9)) }}", "{{ 'x' * 10 ** 9 }}"):  # known by now: refused at once
        own = with_template(program)
        began = time.monotonic()
        with pytest.raises(InputError, match="refuses these messages"):
            render_prompt(QUESTION, own, PromptConfig())
        assert time.monotonic() - began < 1
    assert render_prompt(QUESTION, tokenizer, PromptConfig()) == in_process(tokenizer, PromptConfig())


def with_template(program: str):
    other = AutoTokenizer.from_pretrained(model_path())
    other.chat_template = program
    return other


def in_process(tokenizer, prompt: PromptConfig, question: Question = QUESTION) -> tuple[int, ...]:
    """The ids as transformers itself makes them."""
    from spinerl.data import chat_messages

    ids = tokenizer.apply_chat_template(
        chat_messages(question, prompt), add_generation_prompt=True, return_dict=False, **prompt.template_options
    )
    return tuple(ids)


CHATML = (
    "{%- if tools %}{{ tools | tojson(indent=1) }}{% endif -%}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
GOOD = {
    "its own": (None, {}),
    "options": (CHATML, {"enable_thinking": False}),
    "options that are not given": (CHATML, {}),
    "tools": (CHATML, {"tools": [{"type": "function", "function": {"name": "add", "description": "é <b>"}}]}),
    "generation blocks": ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", {}),
    "loop controls": ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", {}),
    "the date": ("{{ strftime_now('%Y') }} {{ messages[-1].content }}", {}),
    "special tokens": ("{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}{{ pad_token }}", {}),
    "special tokens of the options": ("{{ bos_token }}{{ messages[-1].content }}", {"bos_token": "!"}),
    "namespaces and macros": (
        "{% macro say(m) %}{{ m.role }}: {{ m.content }}\n{% endmacro %}{% set n = namespace(i=0) %}"
        "{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }} {{ say(m) }}{% endfor %}",
        {},
    ),
    "values of all kinds": ("{{ kinds | tojson }}{{ documents }}", {"kinds": {"a": [1, 0.5, None, True, "é"]}}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_template_gives_the_ids_of_transformers(name, tokenizer):
    program, options = GOOD[name]
    own = tokenizer if program is None else with_template(program)
    prompt = PromptConfig(system="Count:  ", template_options=options)
    for text in ("2 + 3?", " <|user|> \u202e \x00é\n\n{{ 1 / 0 }} {% raw %} "):
        question = Question("1", text)
        assert render_prompt(question, own, prompt) == in_process(own, prompt, question)


def test_templates_by_name_and_of_a_class_of_its_own(tokenizer):
    named = with_template("x")
    named.chat_template = {"default": "A{{ messages[0].content }}", "tool_use": "B"}
    assert apply_template(named, [{"role": "user", "content": "!"}]) == "A!"
    assert apply_template(named, [{"role": "user", "content": "!"}], {"tools": [{"name": "a"}]}) == "B"
    named.chat_template = {"other": "A"}
    with pytest.raises(InputError, match=r"the chat template of .* refuses .*default"):
        render_prompt(QUESTION, named, PromptConfig())

    class Own(type(tokenizer)):
        def apply_chat_template(self, conversation, **options):
            return f"{conversation[0]['content']}{sorted(options)}"

    own = Own.from_pretrained(model_path())
    said = apply_template(own, [{"role": "user", "content": "2"}], {"depth": 1})
    assert said == "2['add_generation_prompt', 'depth', 'tokenize']"


# ----------------------------------------------------------------------------------------------- options

REFUSED = {
    "tokenize": "{tokenize: true}", "return_dict": "{return_dict: true}", "chat_template": "{chat_template: x}",
    "add_generation_prompt": "{add_generation_prompt: false}", "messages": "{messages: []}",
    "conversation": "{conversation: []}", "padding": "{padding: true}", "truncation": "{truncation: true}",
    "max_length": "{max_length: 3}", "return_tensors": "{return_tensors: pt}",
    "tokenizer_kwargs": "{tokenizer_kwargs: {}}",
    "continue_final_message": "{continue_final_message: true}",
    "the key 1": "{levels: {1: a}}",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_not_the_templates_are_refused_before_anything_runs(name):
    with pytest.raises(InputError, match=rf"prompt\.template_options.*{name}"):
        load_config(overrides=[f"prompt.template_options={REFUSED[name]}"])


def test_the_names_taken_are_those_of_transformers():
    taken = {
        name
        for name, parameter in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.items()
        if parameter.kind != inspect.Parameter.VAR_KEYWORD
    }
    assert taken - {"tools", "documents"} <= TEMPLATE_OPTIONS_TAKEN


# ------------------------------------------------------------------------------------------ prompts too long


class Counting:
    """A tokenizer that counts what it is given to tokenize."""

    def __init__(self, inner):
        self._inner, self.chars = inner, 0

    def __call__(self, text, **options):
        self.chars += len(text)
        return self._inner(text, **options)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("chat", ["off", "auto"])
def test_a_long_prompt_is_tokenized_once_at_most(chat, tokenizer):
    counting = Counting(tokenizer)
    config = PromptConfig(chat_template=chat, max_tokens=100, instruction="")
    questions = [Question("short", "2"), Question("long", "2" * 500), Question("huge", "2 " * 100_000)]
    rendered = render_all(questions, counting, config)
    assert [question.id for question in rendered.questions] == ["short"]
    assert rendered.num_too_long == 2
    assert counting.chars < 800  # the huge one not at all
    with pytest.raises(InputError, match="the shortest has over 25,600 characters"):
        render_all(questions[2:], counting, config)


def test_a_prompt_beyond_all_bounds_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"the prompt of question '1' has 4,000,0\d\d characters, over 4,000,000"):
        render_prompt(Question("1", "2" * 4_000_001), tokenizer, PromptConfig(chat_template="off", instruction=""))


def test_a_perturbation_that_blows_up_is_refused(tmp_path, monkeypatch):
    from spinerl.train import adapt
    from tests.e2e.test_guarded_runs import Quiet

    (tmp_path / "blow.py").write_text("def up(text):\n    return text * 200\n")
    monkeypatch.chdir(tmp_path)
    keys = ["data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=1", "threads=1", "guard.questions=2",
            "rollout.max_new_tokens=4", "guard.perturbation=blow:up", "prompt.max_tokens=300", "run=run"]  # fmt: skip
    with pytest.raises(
        InputError, match=r"guard\.perturbation=blow:up makes a prompt of [\d,]+ tokens .*prompt\.max_t"
    ):
        adapt(load_config(overrides=keys), Quiet())


def test_the_process_is_one_and_starts_ahead():
    templates.prepare()
    first = templates._process
    assert templates.render_template("{{ messages | length }}", [], {}) == "0"
    assert templates._process is first


def test_a_process_that_was_killed_is_replaced():
    assert templates.render_template("{{ 1 }}", [], {}) == "1"
    templates._process.process.kill()
    templates._process.process.wait()
    assert templates.render_template("{{ 1 }}", [], {}) == "1"
