"""The entry point: `repquant VERB --option value ...`."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType

from jsonargparse import ArgumentParser, Namespace

from repquant import __version__
from repquant.allocation import keep_freed_memory
from repquant.cli.parser import SuggestingParser, add_options
from repquant.errors import InputError
from repquant.train.stopping import StoppedError

VERBS = {
    "demo": "the whole path on data and weights that ship with the package",
    "convert": "re-parameterize a checkpoint: branches in, one convolution a block out",
    "quantize": "to INT8 with at most the loss that you allow: the one command for a result",
    "ptq": "quantize after training, export, and measure on the runtimes",
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
EXIT_DONE, EXIT_ERROR, EXIT_INPUT, EXIT_STOPPED = 0, 1, 2, os.EX_TEMPFAIL


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 2 the user's input, 75 stopped as asked, 1 anything else."""
    parsed = build_parser().parse_args(arguments)
    verb = _module(parsed.verb)
    chosen: Namespace = parsed[parsed.verb]
    keep_freed_memory()
    try:
        verb.run(verb.Options(**{field.name: chosen[field.name] for field in fields(verb.Options)}))
    except InputError as error:
        print(f"repquant {parsed.verb}: {error}", file=sys.stderr)
        return EXIT_INPUT
    except StoppedError as error:
        print(f"repquant {parsed.verb}: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print(f"repquant {parsed.verb}: interrupted; no output was written", file=sys.stderr)
        return EXIT_ERROR
    except (OSError, FloatingPointError) as error:
        print(f"repquant {parsed.verb}: {error}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_DONE


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
