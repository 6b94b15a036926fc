"""A user's function that is broken, wherever it is called: one line names it, and no run ends well without a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from spinerl.answers import Equivalence, vote
from spinerl.comparison.command import open_named_code
from spinerl.comparison.plan import plan
from spinerl.comparison.schedule import run_tasks
from spinerl.config import load_config
from spinerl.errors import InputError, SpinerlError
from spinerl.hooks import ask_differently, select_tokens, weigh_votes
from spinerl.pipes import python_command, python_environment
from spinerl.plugins import find
from spinerl.rewards import RewardContext, give_rewards
from spinerl.runs import RunFolder
from spinerl.types import Question, Rollout
from tests.faults.commands import SMALL, run_command, run_lines

KEYS = ("reward", "vote.weights", "forks.selector", "guard.perturbation")

MINE = """
import subprocess
from subprocess import getoutput
import torch
number = 7
class Kind:
    def __call__(self, vote):
        return [0.0] * len(vote.classes)
callable_object = Kind()
async def late(vote): return []
def fine(vote): return [float(c == vote.winner) for c in vote.classes]
def none(): return []
def three(a, b, c): return []
def keyword(*, vote): return []
def gold(vote, *, gold): return []
def weights(logprobs, entropies, mask): return mask.sum(1).float()
def selector(entropies, mask, fraction, scope): return mask & (entropies > 0.1)
def nothing(entropies, mask, fraction, scope): return mask & False
def text(text): return text + " Please."
def leave(vote): exit()
def leave_well(vote): raise SystemExit(0)
class Odd(BaseException): pass
def odd(vote): raise Odd("no Exception")
def deep(vote): return deep(vote)
def raises(vote): raise ValueError("first line\\nsecond")
def mute(vote): raise type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})()
def breaks(vote):
    yield 1.0
    raise KeyError("half way")
def endless(vote):
    while True: yield 0.0
def changes(vote, *, logprobs): return logprobs.fill_(7.0)[:, 0]
def weights_raise(logprobs, entropies, mask): return logprobs.nope
def selector_raises(entropies, mask, fraction, scope): exit(0)
def later(vote):
    import signal
    signal.signal(signal.SIGALRM, lambda *_: exit(0))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    return [0.0] * len(vote.classes)
def text_raises(text): raise OSError(2, "no such file", "words.txt")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mine.py").write_text(MINE)
    for name, code in BROKEN.items():
        (folder / f"{name}.py").write_bytes(code)
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """The working folder is that of the plug-ins."""
    monkeypatch.chdir(place)


BROKEN = {
    "syntax": b"def f(:\n",
    "nul": b"def f(vote): return \0\n",
    "latin": "def f(vote): return 'é'\n".encode("latin-1"),
    "missing": b"import not_installed_anywhere\n",
    "half": b"from mine import not_there\n",
    "divides": b"1 / 0\n",
    "exits": b"import sys\nsys.exit(0)\n",
    "exits_in_words": b"raise SystemExit('bye')\n",
    "recursive": b"def f(): return f()\nf()\n",
    "base": b"class Odd(BaseException): pass\nraise Odd('at import')\n",
    "lazy": b"def __getattr__(name): raise RuntimeError('no attributes today')\n",
}

# (name, what the line says of it): refused before a model is read, exit code 2
NAMES = {
    "syntax:f": "cannot be imported: SyntaxError: invalid syntax (syntax.py, line 1)",
    "nul:f": "cannot be imported: ",
    "latin:f": "cannot be imported: SyntaxError",
    "missing:f": "No module named 'not_installed_anywhere'",
    "half:f": "cannot import name 'not_there'",
    "divides:f": "cannot be imported: ZeroDivisionError: division by zero",
    "exits:f": "cannot be imported: SystemExit: 0: a plug-in must not end the program",
    "exits_in_words:f": "SystemExit: 'bye': a plug-in must not end the program",
    "recursive:f": "cannot be imported: RecursionError",
    "base:f": "cannot be imported: Odd: at import",
    "lazy:f": "RuntimeError: no attributes today",
    "nowhere:f": "No module named 'nowhere'",
    "mine:nowhere": "has no attribute 'nowhere'",
    "folder:f": "has no attribute 'f'",
    ":f": "is not module:function",
    "mine:": "is not module:function",
    ".mine:f": "is not module:function",
    "mine.:f": "is not module:function",
    "a:b:c": "is not module:function",
    "mine:subprocess.getoutput": "is not module:function",
    "mine:fine()": "is not module:function",
    "mi ne:f": "is not module:function",
    "../mine:f": "is not module:function",
    "mine:number": "is a int, not a function",
    "mine:Kind": "is a class, not a function",
    "mine:torch": "is a module, not a function",
    "mine:late": "is an async function",
}
SIGNATURES = {
    "reward": {
        "mine:none": "first argument is the vote",
        "mine:three": "asks for 'b'",
        "mine:keyword": "must take (vote)",
        "mine:gold": "asks for 'gold'",
    },
    "vote.weights": {"mine:none": "must take (logprobs, entropies, mask): too many", "mine:text": "too many"},
    "forks.selector": {"mine:weights": "must take (entropies, mask, fraction, scope): too many"},
    "guard.perturbation": {"mine:weights": "missing a required argument: 'entropies'", "mine:none": "too many"},
}


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        *((KEYS[i % 4], name, says) for i, (name, says) in enumerate(NAMES.items())),
        *((key, name, says) for key, rows in SIGNATURES.items() for name, says in rows.items()),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_runs(capsys, tmp_path, key, name, says):
    code, lines = run_lines(["adapt", f"{key}={name}", f"run={tmp_path / 'r'}", *SMALL], capsys)
    assert code == 2
    assert len(lines) == 1, lines
    assert f"{key}={name}" in lines[0].replace("'", "").replace('"', ""), lines
    assert says in lines[0]
    assert not (tmp_path / "r").exists()


QUESTIONS = (Question("a", "What is 2 + 3?"), Question("b", "What is 4 + 4?"))


def rollout() -> Rollout:
    """Two questions with three responses of four tokens, the last token of the last one padding."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[5, 3] = False
    zeros = torch.zeros(6, 4)
    return Rollout(QUESTIONS, ((1,), (1,)), 3, zeros.long(), mask, zeros - 1.0, zeros + 0.5, mask[:, 0], ("5",) * 6)


def given_rewards(name: str) -> tuple[tuple[float, ...], ...]:
    config = load_config(overrides=[f"reward={name}"])
    votes = tuple(vote(["5", "5", "8"], (0, 0, 1)) for _ in QUESTIONS)
    with Equivalence() as equivalence:
        return give_rewards(RewardContext(config, 1, None, None, rollout(), votes, equivalence))  # pyright: ignore


def selected(name: str) -> torch.Tensor:
    one = rollout()
    return select_tokens(one.entropies, one.mask, load_config(overrides=[f"forks.selector={name}"]).forks)


CALLS = {
    "reward": given_rewards,
    "vote.weights": lambda name: weigh_votes(rollout(), name),
    "forks.selector": selected,
    "guard.perturbation": lambda name: ask_differently(QUESTIONS[1], find({}, name, "guard.perturbation"), name),
}
ARGUMENTS = {
    "reward": "vote",
    "vote.weights": "logprobs, entropies, mask",
    "forks.selector": "entropies, mask, fraction, scope",
    "guard.perturbation": "text",
}


def returning(place: Path, key: str, expression: str) -> str:
    """The name of a plug-in that returns this."""
    name = f"returns_{len(list(place.glob('returns_*')))}"
    code = f"import decimal, fractions, numpy as np, torch\ndef f({ARGUMENTS[key]}): return {expression}\n"
    (place / f"{name}.py").write_text(code)
    return f"{name}:f"


# What is returned for a question with three responses -> what the line says.
REWARDS = {
    "None": "it returned None",
    "[0.0, float('nan'), 0.0]": "response 1 got nan (float)",
    "[0.0, 0.0, -float('inf')]": "response 2 got -inf (float)",
    "[0.0, 0.0, 10**400]": "response 2 got",
    "[1e300, 0.0, 0.0]": "response 0 got 1e+300 (float)",
    "['1', 0.0, 0.0]": "response 0 got '1' (str)",
    "[1j, 0.0, 0.0]": "response 0 got 1j (complex)",
    "np.array([1 + 2j, 0, 0])": "response 0 got",
    "torch.tensor([1 + 2j, 0, 0])": "response 0 got",
    "[None] * 3": "response 0 got None",
    "[[1.0], [0.0], [0.0]]": "response 0 got [1.0] (list)",
    "[torch.zeros(1)] * 3": "response 0 got tensor([0.]) (Tensor)",
    "torch.zeros(3, 1)": "(Tensor)",
    "torch.zeros(3, device='meta')": "response 0 got",
    "torch.tensor(1.0)": "it returned tensor(1.) (Tensor)",
    "[]": "it returned 0 numbers",
    "[0.0] * 2": "it returned 2 numbers",
    "[0.0] * 4": "it returned 4 numbers",
    "iter([0.0] * 9)": "it returned more than 3 numbers",
    "{1.0, 2.0, 3.0}": "(set)",
    "{0: 1.0, 1: 1.0, 2: 1.0}": "(dict)",
    "dict.fromkeys('abc', 1.0).keys()": "(dict_keys)",
    "'111'": "it returned '111' (str)",
    "b'111'": "(bytes)",
    "1.0": "it returned 1.0 (float)",
    "print": "(builtin_function_or_method)",
    "type('Loud', (), {'__repr__': lambda self: 1 / 0})()": "it returned <Loud> (Loud)",
}
WEIGHTS = {
    "None": "it returned None",
    "mask.sum(1) - 9": "response 0 to question 'a' got tensor(-5) (Tensor)",
    "logprobs.sum(1) * float('nan')": "response 0 to question 'a' got tensor(nan)",
    "[1.0] * 5 + [float('inf')]": "response 2 to question 'b' got inf",
    "logprobs": "(Tensor)",
    "logprobs[:3, 0]": "response 0 to question 'a'",
    "[1.0] * 3": "it returned 3 numbers",
    "[1.0] * 7": "it returned 7 numbers",
    "['1'] * 6": "response 0 to question 'a' got '1'",
    "logprobs.sum(1).to(torch.complex64)": "response 0 to question 'a'",
    "{'a': 1}": "(dict)",
    "1": "it returned 1 (int)",
}
SELECTORS = {
    "None": "it returned None",
    "mask.float()": "it returned torch.float32 of shape (6, 4)",
    "mask.int()": "torch.int32",
    "mask.to(torch.complex64)": "torch.complex64",
    "mask[:3]": "of shape (3, 4)",
    "mask.T": "of shape (4, 6)",
    "mask[:, :1]": "of shape (6, 1)",
    "torch.tensor(True)": "of shape ()",
    "torch.ones_like(mask)": "it selected 1 places outside of the mask, the first in row 5, column 3",
    "mask.tolist()": "(list)",
    "np.ones((6, 4))": "(ndarray)",
    "np.array(['x'])": "it returned array(['x'], dtype='<U1') (ndarray)",
    "(mask, mask)": "(tuple)",
    "mask.to('meta')": "raised NotImplementedError",
    "True": "it returned True (bool)",
}
TEXTS = {
    "None": "it returned None",
    "''": "it returned '' (str)",
    "' \\n'": "it must return a text, and no blank one",
    "text.encode()": "(bytes)",
    "[text]": "(list)",
    "3": "it returned 3 (int)",
    "text + chr(0xD800)": "(str)",
}


@pytest.mark.parametrize(
    ("key", "expression", "says"),
    [(key, *row) for key, rows in zip(KEYS, (REWARDS, WEIGHTS, SELECTORS, TEXTS), strict=True) for row in rows.items()],
)
def test_what_is_returned_is_named(place, key, expression, says):
    name = returning(place, key, expression)
    with pytest.raises(SpinerlError) as refused:
        CALLS[key](name)
    line = str(refused.value)
    assert line.startswith(f"{key}={name}")
    assert says in line
    assert "\n" not in line
    assert len(line) < 500
    if key in ("reward", "guard.perturbation"):
        assert f"on question '{'a' if key == 'reward' else 'b'}'" in line


TAKEN = {
    "reward": (
        {
            "(1, 0, True)": None,
            "np.array([1.0, 0.0, 1.0])": None,
            "torch.tensor([1.0, 0.0, 1.0], requires_grad=True)": None,
            "[np.float32(1), torch.tensor(0.0), fractions.Fraction(1)]": None,
            "(x for x in (1.0, 0.0, 1.0))": None,
            "np.array([True, False, True])": None,
            "[decimal.Decimal(1), 0, 1]": None,
        },
        ((1.0, 0.0, 1.0),) * 2,
    ),
    "vote.weights": (
        {"mask.any(1)": None, "[1] * 6": None, "np.ones(6)": None, "(1.0 for _ in mask)": None},
        [1.0] * 6,
    ),
}


@pytest.mark.parametrize(("key", "expression"), [(key, one) for key, (rows, _) in TAKEN.items() for one in rows])
def test_numbers_in_any_ordered_form_are_taken(place, key, expression):
    assert CALLS[key](returning(place, key, expression)) == TAKEN[key][1]


@pytest.mark.parametrize("expression", ["mask", "mask.numpy()", "mask & False", "mask.T.contiguous().T"])
def test_bool_tensors_and_arrays_are_selections(place, expression):
    found = selected(returning(place, "forks.selector", expression))
    assert torch.equal(found, rollout().mask & (expression != "mask & False"))


# (key, name, what the line says): raised while running, exit code 1
RAISED = [
    ("reward", "mine:leave", "on question 'a' raised SystemExit: None: a plug-in must not end the program"),
    ("reward", "mine:leave_well", "on question 'a' raised SystemExit: 0: a plug-in must not end the program"),
    ("reward", "mine:odd", "on question 'a' raised Odd: no Exception"),
    ("reward", "mine:deep", "on question 'a' raised RecursionError"),
    ("reward", "mine:raises", "on question 'a' raised ValueError: first line second"),
    ("reward", "mine:mute", "on question 'a' raised Mute"),
    ("reward", "mine:breaks", "on question 'a' raised KeyError: 'half way'"),
    ("vote.weights", "mine:weights_raise", "raised AttributeError: 'Tensor' object has no attribute 'nope'"),
    ("forks.selector", "mine:selector_raises", "raised SystemExit"),
    ("guard.perturbation", "mine:text_raises", "on question 'b' raised FileNotFoundError: [Errno 2] no such file"),
]


@pytest.mark.parametrize(("key", "name", "says"), RAISED, ids=lambda value: value)
def test_what_is_raised_is_named(place, key, name, says):
    with pytest.raises(SpinerlError) as failed:
        CALLS[key](name)
    line = str(failed.value)
    assert failed.value.exit_code == 1
    assert line.startswith(f"{key}={name}")
    assert says in line
    assert f"{place / 'mine.py'}, line " in line
    assert "\n" not in line


def test_an_endless_generator_is_cut_off():
    with pytest.raises(InputError, match="mine:endless on question 'a': it returned more than 3 numbers"):
        given_rewards("mine:endless")


def test_a_plugin_cannot_change_what_it_is_given(place):
    one = rollout()
    config = load_config(overrides=["reward=mine:changes"])
    votes = tuple(vote(["5", "5", "8"], (0, 0, 1)) for _ in QUESTIONS)
    with Equivalence() as equivalence:
        give_rewards(RewardContext(config, 1, None, None, one, votes, equivalence))  # pyright: ignore
    for key in ("vote.weights", "forks.selector"):
        name = returning(place, key, "(entropies.zero_(), mask.fill_(True))[1].float().sum(1)")
        if key == "vote.weights":
            weigh_votes(one, name)
        else:
            with pytest.raises(InputError, match=r"outside|shape"):
                select_tokens(one.entropies, one.mask, load_config(overrides=[f"{key}={name}"]).forks)
    fresh = rollout()
    assert torch.equal(one.logprobs, fresh.logprobs)
    assert torch.equal(one.entropies, fresh.entropies)
    assert torch.equal(one.mask, fresh.mask)


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["reward=mine:leave_well"], 1, "reward=mine:leave_well on question"),
        (["forks.selector=mine:selector_raises"], 1, "forks.selector=mine:selector_raises raised SystemExit: 0"),
        (["guard=warn", "guard.questions=2", "guard.samples=2", "guard.perturbation=mine:text_raises"], 1, "words.txt"),
        (["reward=mine:later", "steps=500"], 1, "called exit(0)"),
        (["reward=mine:callable_object"], 0, "plug-in reward=mine:callable_object: "),
        (
            ["forks.selector=mine:nothing"],
            0,
            "selector=mine:nothing selected no token in 2 of 2 steps (fork/fraction is 0 in metrics.jsonl)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_ends_well_only_with_a_model(capsys, tmp_path, overrides, code, says):
    found, printed = run_command(["adapt", *SMALL, *overrides, f"run={tmp_path / 'r'}"], capsys)
    assert (found, says in printed) == (code, True), printed
    assert (tmp_path / "r" / "model").exists() == (code == 0)
    if "mine:nothing" in overrides[0]:
        assert printed.count("selected none of") == 1
        assert [row["fork/fraction"] for row in RunFolder(tmp_path / "r").rows("metrics.jsonl")] == [0, 0]


# --- permission


RECIPES = {
    "reward: mine:fine\n": "reward=mine:fine (PLACE/mine.py)",
    "{reward: mine:fine, vote: {weights: mine:weights}}\n": "vote.weights=mine:weights",
    "forks: {selector: mine:selector}\n": "forks.selector=mine:selector",
    "guard: {perturbation: mine:text}\n": "guard.perturbation=mine:text",
    "reward: exits:f\n": "reward=exits:f (PLACE/exits.py)",
    "reward: nowhere:f\n": "reward=nowhere:f",
    "model: {trust_remote_code: true}\n": "model.trust_remote_code=true",
    "vllm: {options: {worker_extension_cls: mine.Kind}}\n": "vllm.options={'worker_extension_cls': 'mine.Kind'}",
    "vllm: {options: {trust_remote_code: true}}\n": "vllm.options=",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_no_code_without_a_word(capsys, tmp_path, place, recipe):
    (tmp_path / "r.yaml").write_text(recipe)
    before = set(sys.modules)
    code, lines = run_lines(["adapt", tmp_path / "r.yaml", *SMALL, f"run={tmp_path / 'r'}"], capsys)
    assert code == 2
    assert len(lines) == 1
    assert RECIPES[recipe].replace("PLACE", str(place)) in lines[0]
    assert lines[0].startswith(f"spinerl: {tmp_path / 'r.yaml'} names code to run: ")
    assert lines[0].endswith("; read it, then allow it with --allow-plugins")
    assert not {"mine", "exits"} & (set(sys.modules) - before)
    assert not (tmp_path / "r").exists()


NEVER = {
    "guard: {perturbation: 'subprocess:getoutput'}": "subprocess is Python's own",
    "guard: {perturbation: 'os:system'}": "os is Python's own",
    "reward: builtins:eval": "builtins is Python's own",
    "reward: posix:system": "posix is Python's own",
    "guard: {perturbation: 'test.support:captured_output'}": "is Python's own",
    "guard: {perturbation: 'torch.utils.collect_env:run'}": "an installed package that does not require spinerl",
    "guard: {perturbation: 'numpy.f2py.diagnose:run_command'}": "an installed package that does not require spinerl",
    "reward: spinerl.rewards:_no_reward": "spinerl.rewards is spinerl's own",
    "guard: {perturbation: 'mine:getoutput'}": "the function is of subprocess, not of mine",
}


@pytest.mark.parametrize("recipe", NEVER)
def test_a_recipe_names_plugins_only_whatever_is_allowed(capsys, tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(recipe)
    code, lines = run_lines(["adapt", "--allow-plugins", tmp_path / "r.yaml", f"run={tmp_path / 'r'}"], capsys)
    assert code == 2
    assert len(lines) == 1
    assert NEVER[recipe] in lines[0]
    assert f"named by {tmp_path / 'r.yaml'}" in lines[0]


def test_an_allowed_recipe_runs_and_says_what_it_runs(capsys, tmp_path, place):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{reward: mine:fine, steps: 0, method: ttrl}")
    run = tmp_path / "r"
    code, printed = run_command(["adapt", "--allow-plugins", recipe, *SMALL, "steps=0", f"run={run}"], capsys)
    assert code == 0, printed
    assert printed.startswith(f"plug-in reward=mine:fine, named by {recipe}: {place / 'mine.py'} ")
    # The run folder names it now: it may have come from anywhere.
    code, printed = run_command(["adapt", "--resume", run], capsys)
    assert code == 2
    assert f"{run}/config.yaml names code to run: reward=mine:fine" in printed
    code, printed = run_command(["adapt", "--resume", run, "--allow-plugins"], capsys)
    assert code == 0, printed
    assert f"named by {run}/config.yaml" in printed
    code, printed = run_command(["adapt", "--resume", run, "reward=mine:fine"], capsys)
    assert code == 0, printed
    assert printed.startswith(f"plug-in reward=mine:fine: {place / 'mine.py'} ")
    for words in (["reward=mine:raises"], ["reward=mine:fine", "steps=9"], ["reward=mine:fine", "--overwrite"]):
        code, printed = run_command(["adapt", "--resume", run, *words], capsys)
        assert code == 2
        assert "--resume continues a run as it was configured" in printed


def test_the_command_line_may_name_it_again(capsys, tmp_path, place):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{reward: mine:fine, steps: 0, method: ttrl}")
    words = [*SMALL, "steps=0", "reward=mine:fine", f"run={tmp_path / 'r'}"]
    code, printed = run_command(["adapt", recipe, *words], capsys)
    assert code == 0, printed
    assert printed.startswith(f"plug-in reward=mine:fine: {place / 'mine.py'} ")


ONE_RUN = ["methods=none", "data.max_questions=2", "rollout.max_new_tokens=4", "samples=0", "votes=0", "unseen=none",
           "original=none", "forcing.budget=0", "jobs=1"]  # fmt: skip


@pytest.mark.parametrize(
    ("study", "words", "says"),
    [
        ({"reward": "mine:fine"}, [], "study.yaml names code to run: reward=mine:fine"),
        ({"variants": {"v": {"method": "ttrl", "reward": "mine:fine"}}}, ["methods=v"], "reward=mine:fine"),
        ({"variants": {"v": {"method": "ttrl", "vote": {"weights": "mine:weights"}}}}, ["methods=v"], "mine:weights"),
        ({"settings": "settings.yaml"}, ["methods=ttrl"], "settings.yaml names code to run: forks.selector=mine:sel"),
        ({"reward": "mine:fine"}, ["reward=mine:raises"], None),
        ({"reward": "mine:fine"}, ["reward=mine:fine"], None),
        ({"variants": {"v": {"method": "ttrl"}}}, ["methods=v", "variants.v.reward=mine:fine"], None),
        ({}, ["methods=v", "variants.v={method: ttrl, vote: {weights: mine:weights}}"], None),
        ({"vllm": {"options": {"worker_cls": "mine.Kind"}}}, ["vllm.options.seed=1"], "vllm.options="),
        (
            {"reward": "mine:fine"},
            ["variants.v.method=ttrl", "variants.v.reward=mine:raises", "methods=v,ttrl"],
            "reward=mine:fine",
        ),
    ],
)
def test_a_study_runs_no_code_without_a_word(capsys, tmp_path, study, words, says):
    """What is typed, for all runs or for a variant, is permitted; what only a file names is not."""
    (tmp_path / "settings.yaml").write_text("forks: {selector: mine:selector}")
    if "settings" in study:
        study = {"settings": str(tmp_path / "settings.yaml")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words = [str(tmp_path / "study.yaml"), *ONE_RUN, *words, f"out={tmp_path / 'out'}"]
    if says is not None:
        code, lines = run_lines(["compare", *words], capsys)
        assert code == 2
        assert len(lines) == 1
        assert says in lines[0]
        assert lines[0].endswith("allow it with --allow-plugins")
        assert not (tmp_path / "out").exists()
    for allow in (False, True) if says is None else (True,):
        notes: list[str] = []
        open_named_code(plan(words), allow, notes.append)
        assert ("vllm" in study) == (not notes)


# --- children


def write_traps(folder: Path) -> None:
    """Modules that leave a mark where they are imported."""
    for name in ("random", "json", "torch", "typing", "yaml", "numpy"):
        (folder / f"{name}.py").write_text(
            f"import os, pathlib\npathlib.Path({str(folder)!r}, f'imported-{name}-{{os.getpid()}}').touch()\n"
            "raise ImportError('the wrong module')\n"
        )


def marks(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("imported-*")]


class Deaf:
    """Watches tasks, and says nothing."""

    def started(self, *_):
        pass

    heard = ended = started


def failures_of(tmp_path: Path, *words: str) -> list[str]:
    """Why a run of a comparison failed, if it did; only its child knows of the plug-in's file."""
    comparison = plan([*ONE_RUN[1:], "methods=ttrl", "steps=0", f"out={tmp_path / 'out'}", *words])
    task = next(task for task in comparison.tasks if task.row.name == "ttrl")
    return [why for _, why in run_tasks([(task, "new")], 1, tmp_path / "logs", Deaf())]


def test_runs_of_a_comparison_import_nothing_of_the_working_folder_but_plugins(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("import pathlib\npathlib.Path('own').touch()\ndef f(vote): return []\n")
    monkeypatch.chdir(tmp_path)
    write_traps(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", os.environ.get("PYTHONPATH", "")]))
    assert failures_of(tmp_path, "reward=own:f") == []
    assert Path("own").exists()
    assert not marks(tmp_path)


@pytest.mark.faults
def test_a_child_that_ends_itself_is_a_failed_run(tmp_path, monkeypatch):
    (tmp_path / "quits.py").write_text("import os\nos._exit(0)\n")
    monkeypatch.chdir(tmp_path)
    (why,) = failures_of(tmp_path, "reward=quits:f")
    assert why.startswith("exit code 0 before its end: ")


def test_measurements_and_answer_workers_import_nothing_of_the_working_folder(tmp_path, monkeypatch):
    from spinerl.bench.children import run_worker
    from spinerl.bench.settings import load_settings

    monkeypatch.chdir(tmp_path)
    write_traps(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(SpinerlError, match="KeyError: 'nothing'"):  # it got as far as looking for its task
        run_worker("nothing", load_settings(), tmp_path)
    with Equivalence() as equivalence:
        assert equivalence.equivalent(r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", "math")
    assert not marks(tmp_path)


def test_a_child_finds_the_same_spinerl_and_passes_its_caution_on(tmp_path, monkeypatch):
    import spinerl

    monkeypatch.chdir(tmp_path)
    write_traps(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "::relative")
    (tmp_path / "relative").mkdir()
    (tmp_path / "relative" / "child.py").write_text(
        "import json, random, subprocess, sys\nimport spinerl\nprint(spinerl.__file__)\n"
        "subprocess.run([sys.executable, '-c', 'import json, random'], check=True)\n"
    )
    done = subprocess.run(python_command("child"), env=python_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spinerl.__file__
    assert not marks(tmp_path)


def test_a_working_folder_that_is_gone(tmp_path):
    """The command is refused; in Python, a plug-in that would be there is."""
    code = (
        "import os, sys; from spinerl.cli import main; from spinerl.plugins import find\n"
        "os.mkdir('x'); os.chdir('x'); os.rmdir('../x')\n"
        "try: find({}, 'mine_not_there:f', 'reward')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "main(['config'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("InputError reward='mine_not_there:f' cannot be imported: ModuleNotFoundError")
    assert done.stdout.strip().endswith("; the working folder is gone")
    assert done.stderr == "spinerl: the working folder is gone (No such file or directory); change to another\n"


@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        (5, "callbacks=5: give a list of objects"),
        ("on_step", "give a list of objects"),
        ([5], "callback 5 has none of the methods on_step"),
        ([type("Late", (), {"on_step": print})], "is a class; give an object of it"),
        ([type("Odd", (), {"on_step": 3, "on_evaluation": print})()], "its on_step is 3, not a method"),
    ],
)
def test_callbacks_that_cannot_be_called_are_refused(callbacks, says):
    import spinerl

    with pytest.raises(InputError, match=says):
        spinerl.adapt("tiny-reasoner", ["What is 2 + 3?"], callbacks=callbacks, steps=0, guard="off")
