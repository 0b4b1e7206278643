#!/usr/bin/env bash
# On a machine with an NVIDIA GPU. With DATA and WEIGHTS, and TensorRT 10.0 or newer: build engines, run them, compare them
# with the simulation image by image, and write results/tensorrt.md. With `cuda`, and a PyTorch build for it: the tests
# marked cuda, in under nine minutes.
#
#     scripts/verify_on_gpu.sh cuda
#     scripts/verify_on_gpu.sh DATA WEIGHTS [further options of `repquant ptq`]
#     scripts/verify_on_gpu.sh imagenette160 repvgg-a0-plain.pth --arch RepVGG-A0 --num-classes 10 --image-size 160 --crop-ratio 1.0
#     scripts/verify_on_gpu.sh builtin builtin --arch RepVGG-tiny --num-classes 10 --image-size 32 --crop-ratio 1.0
#
# It needs repquant with its extra onnxruntime, and tensorrt or pytest, in the python that PYTHON names (default: python3).
# This script has not been executed where a GPU is (docs/how-to/tensorrt.md).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

if [ $# -lt 2 ] && [ "${1:-}" != cuda ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo "nvidia-smi finds no GPU" >&2; exit 2; }
if [ "$1" = cuda ]; then
    "$PYTHON" -c 'import torch; assert torch.cuda.is_available(); print("PyTorch", torch.__version__)' ||
        { echo "PyTorch finds no GPU: install a build for CUDA" >&2; exit 2; }
    exec timeout 540 "$PYTHON" -m pytest -m cuda -rs tests
fi
"$PYTHON" -c 'import tensorrt; print("TensorRT", tensorrt.__version__)' || { echo "run pip install tensorrt" >&2; exit 2; }

exec "$PYTHON" scripts/verify_on_gpu.py "$@"
