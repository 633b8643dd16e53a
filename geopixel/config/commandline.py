"""A settings class as a command: its fields are the flags, the keys of a TOML file and what --help shows. Knows no setting of any command."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


def flag(group: str, metavar: str, description: str, default: Any = None, **rules: Any) -> Any:
    """A setting: its default, its rules, and how --help shows it. group: the title that it stands under. metavar: of its value; empty: a switch."""
    return Field(default, description=description, json_schema_extra={"group": group, "metavar": metavar}, validate_default=True, **rules)


class Settings(BaseSettings):
    """What all commands share. A command's class says its docstring to --help and must have a field `config`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True, cli_kebab_case=True, cli_implicit_flags="toggle"
    )
    program: ClassVar[str]
    """Name of the command, which its errors begin with."""
    usage: ClassVar[str]
    examples: ClassVar[str]

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The flags (put first by CliApp), then the file's keys: environment variables that happen to be called MODEL or OUT have no say."""
        return (init_settings,)


S = TypeVar("S", bound=Settings)


def load(settings: type[S], argv: Sequence[str] | None = None) -> S:
    """The settings of the command line argv (default: this process's), over those of the TOML file that its --config names.

    Exits: 0 after printing --help; 2 after printing one line that names every refused value and the rule it breaks.
    """
    by_name = _by_name(settings)
    try:
        flags = _flags(settings)
        given = _parse(settings, flags.root_parser, sys.argv[1:] if argv is None else argv)
        keys = _read_toml(settings, Path(given["config"]).expanduser()) if "config" in given else {}
        origins = dict.fromkeys(keys.keys() - given.keys(), f" (in {given.get('config')})")
        for name in by_name & given.keys():  # pydantic-settings has ideas of its own of NAME=NUMBER
            keys[name] = given.pop(name)
        try:
            return CliApp.run(settings, cli_args=given, cli_settings_source=flags, **keys)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(detail, origins) for detail in error.errors())) from None
    except ValueError as error:
        print(f"{settings.program}: error: {error}", file=sys.stderr)
        sys.exit(2)


def suggestion(word: str, known: Sequence[str]) -> str:
    """What may have been meant, as the end of a sentence; empty where nothing is near."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _by_name(settings: type[Settings]) -> set[str]:
    """Fields that are a number of each of several names."""
    return {name for name, field in settings.model_fields.items() if field.annotation == dict[str, float]}


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _flags(settings: type[Settings]) -> CliSettingsSource[_Parser]:
    """pydantic-settings reads the flags off the class; here is only how they look in --help."""
    wide = partial(RawDescriptionHelpFormatter, max_help_position=32)
    parser = _Parser(usage=settings.usage, description=settings.__doc__, epilog=settings.examples, formatter_class=wide, allow_abbrev=False, add_help=False)
    groups: dict[str, Any] = {}

    def add_argument(_: _Parser, *names: str, **options: Any) -> None:
        field = settings.model_fields[options["dest"]]
        shown: Any = field.json_schema_extra
        options["help"] = field.description
        if "metavar" in options:  # all but the switches
            options["metavar"] = shown["metavar"]
        if " " in shown["metavar"]:  # several words, or one with commas
            options |= {"action": "extend", "nargs": "+", "metavar": tuple(shown["metavar"].split())}
        if options["dest"] in _by_name(settings):
            options |= {"action": "append"}
        if (title := shown["group"]) not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(*names, **options)

    source: CliSettingsSource[_Parser] = CliSettingsSource(settings, root_parser=parser, add_argument_method=add_argument)
    groups["running"].add_argument("-h", "--help", action="help", help="show this and stop")
    return source


def _parse(settings: type[Settings], parser: _Parser, argv: Sequence[str]) -> dict[str, Any]:
    """Values of the flags given, by field name; lists as JSON, so that pydantic-settings does not cut prompts at their commas."""
    # argparse takes a box that starts with a minus for a flag, unless it is joined to its own.
    words: list[str] = []
    for word in argv:
        if re.match(r"-[\d.]+,", word) and words and re.fullmatch(r"--[\w-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    given, unknown = parser.parse_known_args(words)
    if unknown:
        known = ["--" + ("no-" if field.default is True else "") + name.replace("_", "-") for name, field in settings.model_fields.items()]
        raise ValueError(f"unknown argument {unknown[0]!r}{suggestion(unknown[0].split('=')[0], known)}")
    listed = {name for name, value in vars(given).items() if isinstance(value, list)} - _by_name(settings)
    return {name: json.dumps(value) if name in listed else value for name, value in vars(given).items()}


def _read_toml(settings: type[Settings], path: Path) -> dict[str, Any]:
    """Settings by field name; the file may write min-area or min_area."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--config {str(path)!r} is not TOML: {error}") from error
    known = [name for name in settings.model_fields if name != "config"]
    for key in keys:
        if key.replace("-", "_") not in known:
            raise ValueError(f"unknown key {key!r} in {path}{suggestion(key.replace('-', '_'), known)}")
    return {key.replace("-", "_"): value for key, value in keys.items()}


def _explain(detail: ErrorDetails, origins: dict[str, str]) -> str:
    """One refused value in words: its flag, the rule, the value, and the file it stands in where it is not from the command line."""
    if detail["type"] == "value_error":
        rule = str(detail["ctx"]["error"])
    else:  # pydantic's own words, without the account of what it tried
        rule = f"{detail['msg'].split(', unable')[0].replace('Input should', 'must').replace('String should', 'must')}, got {detail['input']!r}"
    if not detail["loc"]:
        return rule
    name = str(detail["loc"][0])
    return f"--{name.replace('_', '-')} {rule}{origins.get(name, '')}"
