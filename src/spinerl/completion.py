"""Completion in shells: what may follow on a command line, the scripts for bash, zsh and fish, and where they go.

The shell runs `spinerl` with `_SPINERL_COMPLETE=SHELL` and gives it the line.  What each argument takes is read off
its metavar (MODEL, DATA, RUN, FILE, RECIPE.yaml, KEY=VALUE), so that a new command is completed without a line here.
No torch: an answer has to come at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spinerl.choices import BENCHMARKS, DATA_KEYS, PATH_KEYS, literals, model_names, suite_names, values_of
from spinerl.config import fields_of
from spinerl.errors import InputError
from spinerl.files import write_text
from spinerl.lines import lines_of, read_text, visible
from spinerl.methods import ALIASES, LOSSES, METHODS

__all__ = ["SHELLS", "Candidate", "answer", "complete", "install", "script", "this_shell"]


@dataclass(frozen=True)
class Candidate:
    """A word that may stand in place of the one begun.  `goes_on`: it is not whole, so no space follows."""

    value: str
    help: str = ""
    goes_on: bool = False


# ----------------------------------------------------------------------------------------------- which words


def complete(root: Any, words: Sequence[str], begun: str) -> list[Candidate]:
    """What may stand in place of the word that is begun, after these words.

    Args:
        root: the commands, as `typer.main.get_command` makes them.
        words: the whole words before, without the program's name.
    """
    command, path, given, option = root, [], [], None
    only_arguments = False
    for word in words:
        if option is not None:
            option = None
        elif word == "--" and not only_arguments:
            only_arguments = True
        elif word.startswith("-") and word != "-" and not only_arguments:
            option = None if "=" in word else _option_of(command, word)
        elif not given and word in _commands_of(command):
            command = _commands_of(command)[word]
            path.append(word)
        else:
            given.append(word)
    if option is not None:
        found = _of_metavar(_metavar(option), path, given, begun)
    elif begun.startswith("-") and not only_arguments:
        found = _options(command, path, given, begun)
    elif _commands_of(command) and not given:
        found = (Candidate(name, _first_line(one)) for name, one in _commands_of(command).items() if not one.hidden)
    else:
        found = _argument(command, path, given, begun)
    return [one for one in found if one.value.startswith(begun)]


def _commands_of(command: Any) -> Mapping[str, Any]:
    """The commands below one, in the order of its help; none below most."""
    commands = getattr(command, "commands", {})
    return {name: commands[name] for name in command.list_commands(None)} if commands else {}


def _options(command: Any, path: Sequence[str], given: Sequence[str], begun: str) -> Iterator[Candidate]:
    name, equals, value = begun.partition("=")
    if equals:
        option = _option_of(command, name)
        for one in () if option is None else _of_metavar(_metavar(option), path, given, value):
            yield replace(one, value=f"{name}={one.value}")
        return
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            long = [name for name in one.opts if name.startswith("--")] or one.opts
            yield from (Candidate(name, _plain(one.help)) for name in long)
    yield Candidate("--help", "show what the command takes")


def _option_of(command: Any, word: str) -> Any:
    """The option of this name if a value follows it, else None."""
    for one in command.params:
        if one.param_type_name == "option" and word in one.opts:
            return None if one.is_flag else one
    return None


def _argument(command: Any, path: Sequence[str], given: Sequence[str], begun: str) -> Iterator[Candidate]:
    """What the argument takes that comes next; keys wherever a command takes some."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if not arguments:
        return
    place = min(len(given), len(arguments) - 1)
    if len(given) >= len(arguments) and arguments[-1].nargs == 1:
        return
    metavar = _metavar(arguments[place])
    yield from _of_metavar(metavar, path, given, begun)
    if begun and "KEY=VALUE" not in metavar and any("KEY=VALUE" in _metavar(one) for one in arguments[place:]):
        yield from _overrides(path, begun)


def _metavar(parameter: Any) -> str:
    return parameter.metavar or str(parameter.name).upper()


def _of_metavar(metavar: str, path: Sequence[str], given: Sequence[str], begun: str) -> Iterator[Candidate]:
    kinds = re.findall(r"[A-Z]+(?:=VALUE|\.yaml)?", metavar)
    is_first = not any(True for _ in given)
    if "RECIPE.yaml" in kinds and is_first and "=" not in begun:
        yield from _paths(begun, lambda file: file.suffix in (".yaml", ".yml"))
    if "KEY=VALUE" in kinds:
        yield from _overrides(path, begun)
    for kind in kinds:
        yield from _KINDS.get(kind, _nothing)(begun)


def _first_line(command: Any) -> str:
    return _plain(command.short_help or command.help).partition("\n")[0]


def _plain(text: str | None) -> str:
    """A help text as it was written (`spinerl.usage` escapes them for rich)."""
    return (text or "").strip().replace("\\[", "[")


# ------------------------------------------------------------------------------------------------ keys, values


@dataclass(frozen=True)
class _Key:
    """A key as a command takes it: what it means, the values of it there are, whether it takes a list of them."""

    help: str
    values: Callable[[str], Iterable[Candidate]]
    is_list: bool = False
    in_brackets: bool = False


def _overrides(path: Sequence[str], begun: str) -> Iterator[Candidate]:
    """`KEY=` or `SECTION.` of what is begun, or past the sign KEY=VALUE."""
    name, equals, value = begun.partition("=")
    keys = _keys_of(path[-1] if path else "")
    if not equals:
        yield from _keys_from(keys, begun)
    elif name in keys:
        for one in _values(keys[name], value):
            yield replace(one, value=f"{name}={one.value}")


def _keys_from(keys: Mapping[str, _Key], begun: str) -> list[Candidate]:
    """The keys that begin so, those of a section as the section; all keys of a section where it is the only one."""
    found: dict[str, Candidate] = {}
    for key, one in keys.items():
        if not key.startswith(begun):
            continue
        head, dot, _ = key[len(begun) :].partition(".")
        value = f"{begun}{head}{dot or '='}"
        found.setdefault(value, Candidate(value, "" if dot else one.help, goes_on=True))
    if len(found) == 1 and (section := next(iter(found))).endswith("."):
        return _keys_from(keys, section)
    return list(found.values())


def _values(key: _Key, begun: str) -> Iterator[Candidate]:
    """The values of a key; of a list, those that it does not have yet, after the last comma."""
    if not key.is_list:
        yield from key.values(begun)
        return
    before, comma, item = begun.removeprefix("[").rpartition(",")
    start, end = ("[", "]") if key.in_brackets else ("", "")
    taken = before.split(",")
    for one in key.values(item):
        if one.value.startswith(item) and one.value not in taken:
            yield Candidate(f"{start}{before}{comma}{one.value}{end}", one.help, goes_on=True)


def _keys_of(command: str) -> dict[str, _Key]:
    """The keys of a command: those of a comparison and of a benchmark are others."""
    if command == "bench":
        from spinerl.bench.settings import Settings

        return _described(Settings)
    keys = {key: _key(key, field) for key, field in fields_of() if _is_listed(field)}
    texts = {"model": "model.name", "data": "data.name", "guard": "guard.mode"}
    keys |= {short: keys[key] for short, key in texts.items()}
    keys["loss"] = _Key("a row of spinerl.methods.LOSSES", _rows_of(LOSSES))
    if command == "compare":
        from spinerl.comparison.keys import Keys

        keys = {key: one for key, one in keys.items() if key not in ("method", "run", "seed")} | _described(Keys)
        rows = {**{name: row.summary for name, row in METHODS.items()}, **dict.fromkeys(ALIASES, "")}
        keys["methods"] = replace(keys["methods"], values=_named(rows), is_list=True)
        for name in ("data", "unseen", "original"):
            keys[name] = replace(keys[name], values=_data, is_list=True)
        keys["settings"] = replace(keys["settings"], values=_recipes)
        keys["out"] = replace(keys["out"], values=_files)
    return keys


def _described(section: type[BaseModel]) -> dict[str, _Key]:
    """The keys of a record whose lists are written with commas."""
    return {key: _Key(field.description or "", _named(dict.fromkeys(literals(field.annotation), "")),
                      _is_list(field)) for key, field in fields_of(section)}  # fmt: skip


def _key(key: str, field: FieldInfo) -> _Key:
    help_text = field.description or ""
    if key == "model.name":
        return _Key(help_text, _models)
    if key in DATA_KEYS:
        return _Key(help_text, _data)
    if key in PATH_KEYS:
        return _Key(help_text, _files)
    if key == "method":
        return _Key(help_text, _rows_of(METHODS))
    return _Key(help_text, _named(dict.fromkeys(values_of(key, field), "")), _is_list(field), in_brackets=True)


def _is_list(field: FieldInfo) -> bool:
    return str(field.annotation).startswith(("list[", "tuple["))


def _is_listed(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("listed") is False)


def _rows_of(table: Mapping[str, Any]) -> Callable[[str], Iterable[Candidate]]:
    return _named({name: row.summary for name, row in table.items()})


def _named(names: Mapping[str, str]) -> Callable[[str], Iterable[Candidate]]:
    return lambda _: [Candidate(name, text) for name, text in names.items()]


# ------------------------------------------------------------------------------------------------ names, files


def _nothing(_begun: str) -> Iterator[Candidate]:
    yield from ()


def _models(begun: str) -> Iterator[Candidate]:
    yield from (Candidate(name, "known by its name") for name in model_names())
    yield from _paths(begun, lambda file: file.suffix.lower() == ".gguf", _is_model)


def _data(begun: str) -> Iterator[Candidate]:
    yield from (Candidate(name, "bundled") for name in suite_names())
    yield from (Candidate(name, "benchmark") for name in BENCHMARKS)
    yield from _paths(begun, lambda file: file.suffix.lower() in _DATA_SUFFIXES)


def _runs(begun: str) -> Iterator[Candidate]:
    if not begun:  # where runs are, without another key
        yield from (Candidate(str(file.parent), "run") for file in sorted(Path("runs").glob("*/config.yaml")))
    yield from _paths(begun, lambda _: False, lambda folder: (folder / "config.yaml").is_file())


def _recipes(begun: str) -> Iterator[Candidate]:
    yield from _paths(begun, lambda file: file.suffix in (".yaml", ".yml"))


def _files(begun: str) -> Iterator[Candidate]:
    yield from _paths(begun, lambda _: True)


def _is_model(folder: Path) -> bool:
    names = ("config.json", "adapter_config.json", "model/config.json", "model/adapter_config.json")
    return any((folder / name).is_file() for name in names)


def _paths(
    begun: str, wanted: Callable[[Path], bool], is_whole: Callable[[Path], bool] = lambda _: False
) -> Iterator[Candidate]:
    """Files that are wanted and all folders, which go on unless one is whole; hidden ones where the dot is written."""
    head, slash, tail = begun.rpartition("/")
    folder = Path(f"{head}{slash}" or ".").expanduser()
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(tail) or (entry.name.startswith(".") and not tail.startswith(".")):
            continue
        value = f"{head}{slash}{entry.name}"
        with contextlib.suppress(OSError):
            if not entry.is_dir():
                if wanted(entry):
                    yield Candidate(value)
            elif is_whole(entry):
                yield Candidate(value)
            else:
                yield Candidate(f"{value}/", goes_on=True)


_DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".yaml", ".yml")
_KINDS: dict[str, Callable[[str], Iterator[Candidate]]] = {
    "MODEL": _models,
    "DATA": _data,
    "NAME": _data,
    "RUN": _runs,
    "SHELL": lambda _: (Candidate(name) for name in SHELLS),
    **dict.fromkeys(("FILE", "OUT", "FOLDER"), _files),
}
"""By word of a metavar: what it stands for."""


# ------------------------------------------------------------------------------------------------ shells

_BASH = r"""# spinerl's completion for bash: source this file, or `spinerl --install-completion bash`.
_spinerl() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(_SPINERL_COMPLETE=bash "$1" "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
}
complete -o nospace -F _spinerl spinerl
"""
# zsh quotes what it inserts, but for a leading ~, which would then be no home.  The last lines: the file is sourced, or
# is the function itself where zsh found it in a folder of fpath.
_ZSH = r"""#compdef spinerl
# spinerl's completion for zsh: source this file, or `spinerl --install-completion zsh`.
_spinerl() {
    local line value
    local -a whole whole_shown open open_shown quoting
    [[ $PREFIX == \~* ]] && quoting=(-Q)
    for line in ${(f)"$(_SPINERL_COMPLETE=zsh ${words[1]} "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)"}; do
        value=${line%%$'\t'*}
        if [[ $value == *' ' ]]; then
            value=${value% }
            whole+=("$value")
            whole_shown+=("$value${${line#*$'\t'}:+  -- ${line#*$'\t'}}")
        else
            open+=("$value")
            open_shown+=("$value${${line#*$'\t'}:+  -- ${line#*$'\t'}}")
        fi
    done
    (( ${#whole} )) && compadd $quoting -l -d whole_shown -- "${whole[@]}"
    (( ${#open} )) && compadd $quoting -l -d open_shown -S '' -- "${open[@]}"
}
if [[ ${funcstack[1]} == _spinerl ]]; then
    _spinerl "$@"
else
    compdef _spinerl spinerl
fi
"""
_FISH = r"""# spinerl's completion for fish: source this file, or `spinerl --install-completion fish`.
function __spinerl_complete
    set -l words (commandline -opc)
    env _SPINERL_COMPLETE=fish $words[1] $words[2..-1] (commandline -ct) 2>/dev/null
end
complete --command spinerl --no-files --arguments '(__spinerl_complete)'
"""
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""The script of each shell."""


def answer(root: Any, shell: str, arguments: Sequence[str]) -> Iterator[str]:
    """The lines that a shell's script reads.

    bash gives the line up to the cursor and what it takes for the word begun, for it cuts words at `=` and `:`; the
    others give the words.  A word that is whole ends in a space for bash and zsh; zsh and fish get its meaning after a
    tab.
    """
    if shell == "bash":
        line, cut = (*arguments, "", "")[:2]
        words, raw, is_quoted = _split_line(line)
        begun = words.pop() if words else ""
        found = complete(root, words[1:], begun)
        kept = raw[: len(raw) - len(cut)] if raw.endswith(cut) else raw
        left_out = len(_split_line(kept)[0][-1]) if kept else 0
        for one in found:
            value = one.value[left_out:]
            yield value if is_quoted else _escaped(value) + " " * (not one.goes_on)  # bash closes the quotes
        return
    *words, begun = arguments or [""]
    for one in complete(root, words, begun):
        meaning = " ".join(visible(one.help).split())
        end = " " if shell == "zsh" and not one.goes_on else ""
        yield f"{one.value}{end}\t{meaning}"


def _split_line(line: str) -> tuple[list[str], str, bool]:
    """The words of a line as a shell reads them, the last one as it is written, and whether that has an open quote.

    >>> _split_line("spinerl adapt 'a b' data=x\\\\ ")
    (['spinerl', 'adapt', 'a b', 'data=x '], 'data=x\\\\ ', False)
    >>> _split_line("spinerl ")
    (['spinerl', ''], '', False)
    """
    words, word, start, quote = [], "", 0, ""
    skip = False
    for place, sign in enumerate(line):
        if skip:
            skip = False
            word += sign
        elif sign == "\\" and quote != "'":
            skip = True
        elif quote:
            quote = "" if sign == quote else quote
            word += sign if quote else ""
        elif sign in "'\"":
            quote = sign
        elif sign in " \t\n":
            if line[start:place].strip():
                words.append(word)
            word, start = "", place + 1
        else:
            word += sign
    return [*words, word], line[start:], bool(quote)


def _escaped(value: str) -> str:
    """A word for bash, its special characters behind backslashes; a leading ~ stays the home it stands for."""
    home = value[: value.startswith("~")]
    return home + re.sub(r"([^\w@%+=:,./-])", r"\\\1", value[len(home) :])


def script(shell: str) -> str:
    """The completion script of a shell; InputError for one that has none."""
    if shell not in SHELLS:
        raise InputError(f"completion for {shell!r} is not there; allowed: {', '.join(SHELLS)}")
    return SHELLS[shell]


def this_shell() -> str:
    """The name of the shell that runs this process, else of the user's own; InputError where neither is known."""
    try:
        import shellingham  # typer brings it

        name = shellingham.detect_shell()[0]
    except Exception:  # none of the processes above is a shell
        name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise InputError(f"which shell this is cannot be seen; name it: {', '.join(SHELLS)}")
    return name


def install(shell: str) -> list[str]:
    """Write a shell's script where the shell finds it, once; what was done, in lines.

    Raises InputError for an unknown shell, OSError.
    """
    text, home = script(shell), Path.home()
    start, line = None, ""
    if shell == "fish":
        file = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish/completions/spinerl.fish"
    elif shell == "bash":
        file, start = home / ".bash_completions/spinerl.sh", home / ".bashrc"
        line = f"source {shlex.quote(str(file))}"
    else:
        file, start = home / ".zfunc/_spinerl", Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
        line = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    done = [f"completion for {shell}: {file}"]
    if start is not None:
        before = read_text(start) if start.is_file() else ""
        if line not in lines_of(before):
            with start.open("a", encoding="utf-8") as stream:
                stream.write(f"{'' if not before or before.endswith(chr(10)) else chr(10)}{line}\n")
            done.append(f"added to {start}: {line}")
    return [*done, "it works in the next shell"]
