"""Re-parameterize a checkpoint: the branches of each block become one 3x3 convolution.

The output is in deploy form (or, with --form training, in the form it has), under the keys of the dialect that you
choose, so that this also converts between projects. The suffix decides the format: .safetensors or .pth.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import ModelOptions, option
from repquant.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Options of `repquant convert`."""

    output: str = option("file to write, .safetensors or .pth")
    form: str = option("deploy (re-parameterized) or training (the branches are kept)", "deploy")
    dialect: str = option("names of the keys: official, timm or mmpretrain", "official")
    overwrite: bool = option("replace the output file if it exists", False)


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("convert", options)
    import torch

    from repquant.cli.inputs import load_network, output_file
    from repquant.models.checkpoints import save_model
    from repquant.models.dialects import get_dialect
    from repquant.models.network import count_parameters
    from repquant.models.reparam import reparameterize

    output = output_file(options.output, options.overwrite, (".safetensors", ".pth"))
    dialect = get_dialect(options.dialect).name
    if options.form not in ("deploy", "training"):
        raise InputError(f"form {options.form!r} was given; allowed are deploy and training")
    model = load_network(options)
    if options.form == "training" and model.form == "deploy":
        raise InputError(f"{options.weights} is in deploy form: the branches can't be recovered; use --form deploy")
    converted = reparameterize(model) if options.form == "deploy" else model
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        expected, found = (copy.deepcopy(network).double()(images) for network in (model, converted))
    difference = float((expected - found).abs().max() / expected.abs().max())
    save_model(converted, output, dialect)
    say(f"{options.arch}: {model.form} -> {converted.form}, logits differ by {difference:.1e} of the largest")
    finish(
        {
            "output": options.output,
            "form": converted.form,
            "dialect": dialect,
            "parameters": count_parameters(converted),
            "max_relative_difference": difference,
            "file_bytes": output.stat().st_size,
        }
    )
