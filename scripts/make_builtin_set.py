"""Make the built-in set from Fashion-MNIST: the first 10,000 training images and all 10,000 test images.

apt-get install dataset-fashion-mnist
python scripts/make_builtin_set.py /usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from repquant.data.builtin_set import FOLDER, read_idx

IMAGES_PER_SPLIT = 10_000
SPLITS = {"train": "train", "val": "t10k"}


def main() -> None:
    """Read the four files of Debian's package and write the four of the built-in set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train-images-idx3-ubyte.gz and the three others")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for split, prefix in SPLITS.items():
        for kind, dimensions in (("images", 3), ("labels", 1)):
            array = read_idx(arguments.folder / f"{prefix}-{kind}-idx{dimensions}-ubyte.gz")[:IMAGES_PER_SPLIT]
            file = arguments.output / f"{split}-{kind}.idx.gz"
            write_idx(file, array)
            print(f"{file}: {array.shape}, {file.stat().st_size:,} bytes")


def write_idx(file: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write unsigned bytes as a gzipped IDX file, without a time stamp so that it is reproducible."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    file.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
