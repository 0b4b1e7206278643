"""What TensorRT would refuse in a file, or run in float, found without TensorRT.

python examples/check_target.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import repquant as rq


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()).eval()
    images = [torch.randn(8, 3, 32, 32)]
    with TemporaryDirectory() as folder:
        for target in ("tensorrt", "onnxruntime"):
            path = rq.quantize(model, images, target=target).save(Path(folder) / f"{target}.onnx")
            findings = rq.check(path, "tensorrt")
            print(f"written for {target}: {sum(finding.is_refused for finding in findings)} refused by TensorRT")
            for finding in findings:
                print(f"  {finding}")


if __name__ == "__main__":
    main()
