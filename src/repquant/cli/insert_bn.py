"""Insert batch normalization behind every convolution of a network, without changing what it computes.

The first step of the original quantization-aware training of RepVGG. The checkpoint is re-parameterized first if it has
branches. The file that this writes is for `repquant qat --method inserted-bn --inserted-bn FILE`, which can also do
this step by itself. Under torchrun the processes share the images, and their statistics are merged exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repquant.choices import Averaging
from repquant.cli.console import finish, progress, say, show_configuration
from repquant.cli.options import DataOptions, ModelOptions
from repquant.errors import InputError
from repquant.option_ranges import COUNT, SEED, Numbers, option

if TYPE_CHECKING:
    from repquant.train.distributed import Ranks


EXAMPLE = "repquant insert-bn --arch RepVGG-A0 --weights A0.pth --data FOLDER --output A0-inserted.safetensors"


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions, ModelOptions):
    """Options of `repquant insert-bn`."""

    output: str = option("file to write, .safetensors")
    images: int = option("images of train/ to measure the statistics on; 0 for all", 0, COUNT)
    averaging: Averaging = option("of the statistics: over all values, or as a moving average over batches", "exact")
    momentum: float = option("of ema: weight of a batch; the original code has 0.1", 0.1, Numbers(0, 1, above=True))
    seed: int = option("seed of the choice of images", 0, SEED)
    overwrite: bool = option("replace the output file if it exists", False)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.train.distributed import started_by_torchrun

    with started_by_torchrun("cpu") as (ranks, _):
        _insert_bn(options, ranks)


def _insert_bn(options: Options, ranks: Ranks) -> None:
    import torch

    from repquant.cli.inputs import identified, load_deploy_network, training_loader
    from repquant.cli.outputs import output_file
    from repquant.repvgg.insert_bn import FEW_IMAGES, insert_bn, measure_outputs, merge_outputs, save_inserted_bn

    options = identified(options)
    if ranks.is_main:
        show_configuration("insert-bn", options)
    if options.averaging == "ema" and ranks.world_size > 1:
        raise InputError(
            "--averaging ema weighs a batch by those that follow it, which several processes do not have; pass "
            "--averaging exact, or start one process"
        )
    output = output_file(options, (".safetensors",))
    model = load_deploy_network(options)
    loader = training_loader(options, options.images, options.seed, ranks)
    images = sum(ranks.gather(loader.images))
    if images < FEW_IMAGES and ranks.is_main:
        say(
            f"warning: the statistics come from {images} images; with fewer than {FEW_IMAGES} they depend on which "
            "ones. Pass --images 0 for all of train/"
        )
    with progress("measure", loader.images, shown=ranks.is_main) as advance:
        batches = (batch.images for batch in loader)
        part = measure_outputs(model, batches, options.averaging, options.momentum, advance)
    moments = merge_outputs(ranks.gather(part))
    skipped = sum(ranks.gather(len(loader.skipped)))
    if not ranks.is_main:
        return
    inserted = insert_bn(model, moments)
    noise = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(noise), inserted(noise)
    difference = float((expected - found).abs().max() / expected.abs().max())
    save_inserted_bn(inserted, output)
    say(f"{len(moments)} batch normalizations inserted; logits differ by {difference:.1e} of the largest")
    finish(
        {
            "output": options.output,
            "layers": len(moments),
            "images": images,
            "skipped": skipped,
            "averaging": options.averaging,
            "max_relative_difference": difference,
            "file_bytes": output.stat().st_size,
        }
    )
