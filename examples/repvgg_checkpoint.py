"""A RepVGG checkpoint with branches, to a file in INT8 with a proof on both CPU runtimes.

    python examples/repvgg_checkpoint.py

It takes the network and the images that ship with the package; `load_model("RepVGG-A0.pth", "RepVGG-A0", 1000)` and
`open_split("/data/imagenet", "train")` are yours.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import repquant as rq
from repquant.data.datasets import open_split
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.models.checkpoints import load_model
from repquant.models.zoo import builtin_weights


def batches(split: str, images: int) -> list:
    transform = EvalTransform(image_size=32, crop_ratio=1.0)
    loader = Loader(open_split("builtin", split), transform, 64, indices=range(images))
    return [(batch.images, batch.labels) for batch in loader]


def main() -> None:
    calibration, validation = batches("train", 512), batches("val", 1000)
    model = load_model(builtin_weights(), "RepVGG-tiny", 10)

    deploy = rq.reparameterize(model, calibration[0][0])
    print(deploy.meta["reparameterization"])
    int8 = rq.quantize(deploy, calibration, target="onnxruntime")
    with TemporaryDirectory() as folder:
        print(f"{int8.save(Path(folder) / 'repvgg.onnx').stat().st_size:,} bytes")
    print(rq.prove(deploy, int8, validation))


if __name__ == "__main__":
    main()
