"""The entry point: `repquant VERB --option value ...`."""

import sys
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from repquant import __version__, signals
from repquant.allocation import keep_freed_memory
from repquant.cli.console import show_headlines
from repquant.cli.failures import EXIT_DONE, explain
from repquant.cli.parser import OptionParser, add_options, given_at_least
from repquant.cli.repeating import with_recorded_options
from repquant.cli.untrusted_text import check_arguments, require_code_is_asked_for, require_configurations_stay
from repquant.cli.verbs import VERBS, module_of
from repquant.errors import InputError, shortened
from repquant.option_ranges import check_ranges
from repquant.train.stopping import StoppedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 2 the user's input, 75 stopped as asked, 1 anything else."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = ""
    signals.forget()
    try:
        parsed = _parse(given)
        name = parsed.verb
        verb = module_of(name)
        chosen: Namespace = parsed[name]
        keep_freed_memory()
        show_headlines(chosen["json"])
        values = {field.name: chosen[field.name] for field in fields(verb.Options)}
        options = verb.Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
        check_ranges(options)
        require_code_is_asked_for(options, given)
        require_configurations_stay(options, given)
        verb.run(options)
    except (Exception, KeyboardInterrupt, StoppedError) as error:
        asked = signals.asked()
        if isinstance(asked, SystemExit):
            raise asked from error
        return explain(asked or error, name, given)
    return EXIT_DONE


def _parse(arguments: Sequence[str]) -> Namespace:
    check_arguments(arguments)
    try:
        completes = any(argument.startswith("--print_completion") for argument in arguments)  # of all verbs
        wanted = None if completes else next(filter(VERBS.__contains__, arguments), "none")
        return build_parser(wanted).parse_args(with_recorded_options(arguments))
    except Exception as error:  # texts that are valid YAML can be anything
        raise InputError(f"can't understand the arguments ({shortened(str(error))})") from error


def build_parser(wanted: str | None = None) -> ArgumentParser:
    """Return the parser of all verbs; where one is wanted, only that one has options."""
    set_parsing_settings(add_print_completion_argument=True)  # repquant --print_completion shtab-bash
    parser = OptionParser(
        prog="repquant",
        description="Take a trained network to INT8, and prove on its runtime what that lost. `repquant VERB --help` "
        "says more.",
        version=__version__,
    )
    verbs = parser.add_subcommands(dest="verb", metavar="VERB", help="what to do:")
    for name, summary in VERBS.items():
        if wanted not in (None, name):
            verbs.add_subcommand(name, OptionParser(), help=summary)
            continue
        module = module_of(name)
        verb = OptionParser(
            usage=f"repquant {name} {given_at_least(module.Options)} [--option VALUE ...]",
            description=module.__doc__,
            epilog=f"example:\n  {module.EXAMPLE}",
        )
        add_options(verb, module.Options)
        verbs.add_subcommand(name, verb, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
