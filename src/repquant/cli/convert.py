"""Re-parameterize a checkpoint: the branches of each block become one 3x3 convolution.

The output is in deploy form (or, with --form training, in the form it has), under the keys of the dialect that you
choose, so that this also converts between projects. The suffix decides the format: .safetensors or .pth.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import ModelOptions
from repquant.errors import InputError
from repquant.models.spec import Form
from repquant.option_ranges import option

if TYPE_CHECKING:
    from torch import Tensor

MAX_DIFFERENCE = 1e-3
"""Of the largest logit. Kernels in float32 differ by about 1e-6; this much would show in the accuracy."""


EXAMPLE = "repquant convert --arch RepVGG-A0 --weights A0.pth --output A0-deploy.safetensors"


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Options of `repquant convert`."""

    output: str = option("file to write, .safetensors or .pth")
    form: Form = option("deploy (re-parameterized) or training (the branches are kept)", "deploy")
    dialect: Literal["official", "timm", "mmpretrain"] = option("names of the keys", "official")
    overwrite: bool = option("replace the output file if it exists", False)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    show_configuration("convert", options)
    import torch

    from repquant.cli.inputs import load_network
    from repquant.cli.outputs import output_file
    from repquant.models.checkpoints import save_model
    from repquant.models.dialects import get_dialect
    from repquant.models.network import count_parameters
    from repquant.models.reparam import reparameterize

    output = output_file(options, (".safetensors", ".pth"))
    dialect = get_dialect(options.dialect).name
    model = load_network(options)
    if options.form == "training" and model.form == "deploy":
        raise InputError(f"{options.weights} is in deploy form: the branches can't be recovered; use --form deploy")
    converted = reparameterize(model) if options.form == "deploy" else model
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        expected, found = (copy.deepcopy(network).double()(images) for network in (model, converted))
    difference = _difference(options.weights, expected, found)
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


def _difference(weights: str, expected: Tensor, found: Tensor) -> float:
    """Return the largest difference between the two forms' logits, in units of the largest logit.

    Raises:
        InputError: the checkpoint's own logits are no numbers, or the two differ by more than float32 explains.
    """
    if not expected.isfinite().all():
        raise InputError(
            f"{weights} gives logits that are NaN or infinite for an image of noise; check it, for example for running "
            "variances below 0"
        )
    gap, largest = float((expected - found).abs().max()), float(expected.abs().max())
    if gap == 0:  # also where all logits are 0
        return 0.0
    if not gap <= MAX_DIFFERENCE * largest:  # also NaN
        raise InputError(
            f"the logits of {weights} in deploy form are {gap:.1e} off, of up to {largest:.1e}: float32 can't hold its "
            "branches as one kernel. Nothing was written; --form training keeps the branches"
        )
    return gap / largest
