"""Every option on the command line and in YAML, for every verb."""

import dataclasses
import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from repquant.cli import ptq
from repquant.cli.console import show_configuration
from repquant.cli.main import VERBS, build_parser
from repquant.cli.parser import OptionParser, add_options
from repquant.cli.verbs import module_of
from repquant.option_ranges import option
from repquant.qat.recipe import UNUSED

TWO_VALUES = {
    int: (3, 4),
    float: (0.25, 0.5),
    str: ("one", "two"),
    bool: (True, False),
    tuple[float, float, float]: ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
}


def takes_a_file_by_place(verb):
    """Whether an argument of a verb has no flag, as the file of `check` and `engine`; tests of these verbs give it."""
    options = importlib.import_module(f"repquant.cli.{verb.replace('-', '_')}").Options
    return any(field.metadata.get("positional") for field in dataclasses.fields(options))


WITH_FLAGS_ALONE = [verb for verb in VERBS if not takes_a_file_by_place(verb)]


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    bread: str = option("which bread")
    slices: int = option("how many slices", 2)
    toasted: bool = option("toast it", False)
    cut_off_crust: bool = option("cut off the crust", True)


@pytest.fixture
def sandwich():
    parser = OptionParser(exit_on_error=False)
    add_options(parser, Sandwich)
    return lambda *arguments: vars(parser.parse_args(arguments))


def options_of(verb):
    """The options class of a verb, and (key, flag, value, another value) of each of its options."""
    options = importlib.import_module(f"repquant.cli.{verb.replace('-', '_')}").Options
    hints = get_type_hints(options)
    keys = [field.name for field in dataclasses.fields(options)]
    return options, [(key, f"--{key.replace('_', '-')}", *two_values(hints[key])) for key in keys]


def two_values(hint):
    return get_args(hint)[-1:-3:-1] if get_origin(hint) is Literal else TWO_VALUES[hint]


def parse(verb, *arguments):
    return build_parser(verb).parse_args([verb, *map(str, arguments)])[verb]


def test_defaults(sandwich):
    parsed = sandwich("--bread", "rye")
    assert (parsed["bread"], parsed["slices"], parsed["toasted"], parsed["cut_off_crust"]) == ("rye", 2, False, True)


def test_required_option_is_asked_for(sandwich):
    with pytest.raises(Exception, match="required: --bread"):
        sandwich()


@pytest.mark.parametrize(
    ("arguments", "toasted"), [(["--toasted"], True), (["--toasted", "true"], True), (["--toasted=false"], False)]
)
def test_switch_alone_is_true(sandwich, arguments, toasted):
    assert sandwich("--bread", "rye", *arguments)["toasted"] is toasted


def test_switch_does_not_swallow_the_next_option(sandwich):
    parsed = sandwich("--toasted", "--bread", "rye", "--cut-off-crust", "false")
    assert (parsed["toasted"], parsed["bread"], parsed["cut_off_crust"]) == (True, "rye", False)


@pytest.mark.parametrize("verb", WITH_FLAGS_ALONE)
def test_yaml_sets_every_option_and_the_command_line_overrides_it(verb, tmp_path):
    _, settings = options_of(verb)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({key: value for key, _, value, _ in settings}))
    from_yaml = parse(verb, "--config", config)
    for key, flag, value, another in settings:
        assert listed(from_yaml[key]) == value, key
        assert listed(parse(verb, "--config", config, f"{flag}={another}")[key]) == another, key


@pytest.mark.parametrize("verb", WITH_FLAGS_ALONE)
def test_shown_configuration_is_a_configuration(verb, tmp_path, capsys):
    """What a verb prints when it starts, fed back, gives the same options."""
    options, settings = options_of(verb)
    required = {field.name for field in dataclasses.fields(options) if field.default is dataclasses.MISSING}
    # Options that this verb has and refuses to change, the last three beside others alone.
    fixed = {*UNUSED, "refresh_steps", "freeze_epochs", "crop_area"} if verb == "qat" else set()
    free = [s for s in settings if s[0] in required or (s[0] not in fixed and not isinstance(s[2], str))]
    chosen = parse(verb, *(f"{flag}={another}" for _, flag, _, another in free))
    chosen = options(**{key: chosen[key] for key, *_ in settings})
    show_configuration(verb, chosen)
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().err)
    again = parse(verb, "--config", tmp_path / "shown.yaml")
    assert options(**{key: again[key] for key, *_ in settings}) == chosen


@pytest.mark.parametrize("verb", WITH_FLAGS_ALONE)
def test_printed_configuration_is_a_configuration(verb, tmp_path, capsys):
    _, settings = options_of(verb)
    arguments = [f"{flag}={another}" for _, flag, _, another in settings]
    with pytest.raises(SystemExit) as stopped:
        parse(verb, *arguments, "--print_config")
    assert stopped.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    again = parse(verb, "--config", tmp_path / "printed.yaml")
    assert {key: listed(again[key]) for key, *_ in settings} == {key: another for key, _, _, another in settings}


@pytest.mark.parametrize("verb", WITH_FLAGS_ALONE)
def test_every_option_is_explained(verb, capsys):
    _, settings = options_of(verb)
    with pytest.raises(SystemExit) as stopped:
        parse(verb, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for key, flag, *_ in settings:
        assert flag in shown, key


def test_help_has_groups_choices_ranges_and_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        parse("ptq", "--help")
    shown = capsys.readouterr().out
    for part in ("\nnetwork:\n", "\ntarget:\n", "\nmethod:\n", "\noutput:\n"):
        assert part in shown
    assert "--rounding {feedback,learned,nearest}" in shown
    assert "(from 2 to 8; default: 8)" in shown
    assert shown.splitlines()[-1] == f"  {ptq.EXAMPLE}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_is_one(verb, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # one of them names a recipe
    program, *arguments = shlex.split(module_of(verb).EXAMPLE)
    assert program == "repquant"
    assert build_parser(verb).parse_args(arguments).verb == verb


def listed(value):
    return list(value) if isinstance(value, tuple) else value
