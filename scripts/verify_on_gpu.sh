#!/usr/bin/env bash
# Prove the files for TensorRT on a machine with an NVIDIA GPU and TensorRT 10.0 or newer: build engines, run them, compare
# them with the simulation image by image, and write results/tensorrt.md.
#
#     scripts/verify_on_gpu.sh DATA WEIGHTS [further options of `repquant ptq`]
#     scripts/verify_on_gpu.sh imagenette160 repvgg-a0-plain.pth --arch RepVGG-A0 --num-classes 10 --image-size 160 --crop-ratio 1.0
#     scripts/verify_on_gpu.sh builtin builtin --arch RepVGG-tiny --num-classes 10 --image-size 32 --crop-ratio 1.0
#
# It needs repquant with its extra onnxruntime, and tensorrt, in the python that PYTHON names (default: python3).
# This script has not been executed where TensorRT is (docs/tensorrt.md).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo "nvidia-smi finds no GPU" >&2; exit 2; }
"$PYTHON" -c 'import tensorrt; print("TensorRT", tensorrt.__version__)' || { echo "run pip install tensorrt" >&2; exit 2; }

exec "$PYTHON" scripts/verify_on_gpu.py "$@"
