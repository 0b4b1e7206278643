"""How much memory a file takes in an engine, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from repquant.runtimes.available import ENGINES, open_runtime

_STATUS = Path("/proc/self/status")
_RUNS = 3


def own_memory(
    runtime: str, path: Path, inputs: Mapping[str, tuple[Sequence[int], str]], threads: int | None = None
) -> float | None:
    """Return what loading a file and running it adds to the largest resident set of a process, in MB.

    The libraries themselves, which are imported before, are not in it. Memory of a GPU is not, either.

    Args:
        runtime: name of the engine.
        path: of the file.
        inputs: name -> shape and numpy's name of the type.
        threads: of the engine; None leaves them to it.

    Returns:
        None where the system does not tell (it is not Linux), the engine runs on a GPU, or the process did not end
        well: it may have found too little memory for a second copy.
    """
    if runtime == "tensorrt" or not _STATUS.exists():
        return None
    question = {"runtime": runtime, "path": str(path), "inputs": dict(inputs), "threads": threads}
    command = [sys.executable, "-m", "repquant.bench.memory", json.dumps(question)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return float(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None


def measure(question: str, peak_mb: Callable[[], float]) -> float:
    """Load and run what is asked for in this process, and return by how many MB its peak grew."""
    asked = json.loads(question)
    import_module(ENGINES[asked["runtime"]].module)
    import_module(f"repquant.runtimes.{asked['runtime']}")
    arrays = [np.ones(shape, kind) for shape, kind in asked["inputs"].values()]
    before = peak_mb()
    engine = open_runtime(asked["runtime"], Path(asked["path"]), asked["threads"])
    for _ in range(_RUNS):
        engine(*arrays)
    return peak_mb() - before


def peak_mb() -> float:
    """Return the largest resident set of this process so far.

    Not getrusage's ru_maxrss, which on Linux a process takes over from the one that started it, however large.
    """
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / 1e6


if __name__ == "__main__":
    print(measure(sys.argv[1], peak_mb))
