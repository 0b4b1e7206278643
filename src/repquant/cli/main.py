"""The entry point: `repquant VERB --option value ...`."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType

from jsonargparse import ArgumentParser, Namespace

from repquant import __version__, signals
from repquant.allocation import keep_freed_memory
from repquant.cli.failures import EXIT_DONE, explain
from repquant.cli.parser import SuggestingParser, add_options
from repquant.cli.untrusted_text import check_arguments
from repquant.errors import InputError, shortened
from repquant.option_ranges import check_ranges
from repquant.train.stopping import StoppedError

VERBS = {
    "demo": "the whole path on data and weights that ship with the package",
    "convert": "re-parameterize a checkpoint: branches in, one convolution a block out",
    "quantize": "to INT8 with at most the loss that you allow: the one command for a result",
    "ptq": "quantize after training, export, and measure on the runtimes",
    "report": "a page about runs: what was lost, where, and what to do",
    "analyze": "where quantization loses, layer by layer, and what to do about it",
    "export": "write an ONNX file, float or INT8, without measuring it",
    "check": "what a target would refuse in an ONNX file or run in float, and why",
    "engine": "build a TensorRT engine from an ONNX file, and tell what runs in integers",
    "evaluate": "top-1, top-5 and throughput of a model on any runtime",
    "train": "train a network with its branches",
    "qat": "train on with rounding in the loop, and end as ptq does: for what quantization after training can't keep",
    "reproduce": "the known ways to INT8 for RepVGG side by side on your data, from one checkpoint",
    "insert-bn": "insert batch normalization into a deploy model, the first step of the original QAT pipeline",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 2 the user's input, 75 stopped as asked, 1 anything else."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = ""
    signals.forget()
    try:
        parsed = _parse(given)
        name = parsed.verb
        verb = _module(name)
        chosen: Namespace = parsed[name]
        keep_freed_memory()
        options = verb.Options(**{field.name: chosen[field.name] for field in fields(verb.Options)})
        check_ranges(options)
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
        return build_parser().parse_args(arguments)
    except Exception as error:  # texts that are valid YAML can be anything
        raise InputError(f"can't understand the arguments ({shortened(str(error))})") from error


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs."""
    parser = SuggestingParser(
        prog="repquant",
        description="Take a RepVGG-family classifier to a verified INT8 model. `repquant VERB --help` says more.",
        version=__version__,
        allow_abbrev=False,
    )
    verbs = parser.add_subcommands(dest="verb", metavar="VERB", help="what to do:")
    for name, summary in VERBS.items():
        module = _module(name)
        verb = SuggestingParser(description=module.__doc__, allow_abbrev=False)
        add_options(verb, module.Options)
        verbs.add_subcommand(name, verb, help=summary)
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"repquant.cli.{verb.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
