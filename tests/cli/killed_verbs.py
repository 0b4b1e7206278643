"""Kill verbs at random moments, and look at what is left; then let each finish.

Run as a program with a folder, weights, data, a number of moments for each verb, and a seed; prints one JSON object.
The verbs are forks of this process, which has imported what takes seconds and has no thread of its own.
"""

import hashlib
import importlib
import json
import os
import random
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import onnx
import torch
import torch._dynamo  # an optimizer imports it at its first step
import tqdm
from captured_once import capture_once

from kills import Moment, ended_by_itself, fork, read_events
from repquant.cli.main import VERBS, main
from repquant.graph import capture as capture_module
from repquant.models.checkpoints import load_model, load_tensors
from repquant.models.reparam import reparameterize
from repquant.report.record import read_record
from repquant.report.thumbnails import FILE as THUMBNAILS
from repquant.report.thumbnails import read_thumbnails
from repquant.repvgg import qat_start
from repquant.train.checkpoint import Checkpoint

SMALL = ("--arch", "RepVGG-tiny", "--num-classes", "2", "--image-size", "32", "--crop-ratio", "1.0")
QUANTIZE = ("--target", "onnxruntime", "--vnni", "no", "--runtimes", "pytorch", "--calibration-images", "8")
RESUMED = ("--batch-size", "8", "--epochs", "3", "--checkpoint-steps", "1", "--resume")
QUICK = ("--equalization", "none", "--rounding", "nearest", "--rounding-images", "8")
COMMANDS = {
    "ptq": (*QUANTIZE, *QUICK, "--calibrator", "max", "--overwrite"),
    "quantize": (*QUANTIZE, "--rounding-images", "8", "--held-back-images", "8", "--max-drop", "100", "--overwrite"),
    "qat": (*QUANTIZE, *QUICK, *RESUMED),
    "train": RESUMED,
}


def start(verb: str, weights: str, data: str, output: Path, moment: Moment | None, events: Path | None = None) -> int:
    """Fork a verb; a whole run leaves the names of the modules that it imported beside the output."""

    def work() -> int:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(output.parent / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            model = () if verb == "train" else ("--weights", weights)
            status = main([verb, *SMALL, *model, "--data", data, "--output", str(output), *COMMANDS[verb]])
            if moment is None and events is None:
                (output.parent / "modules.json").write_text(json.dumps([*sys.modules]))
            return status
        except BaseException:
            traceback.print_exc()
            return 1

    return fork(work, moment, events)


def capture_for_all(weights: str) -> None:
    """Capture the network here, in the sizes that the verbs ask for: no fork has to."""
    tqdm.tqdm.monitor_interval = 0  # a progress bar within torch.export starts a thread otherwise
    deploy = reparameterize(load_model(weights, "RepVGG-tiny", 2))
    for size in (32, qat_start._ANY_SIZE):
        capture_once(deploy, torch.zeros(2, 3, size, size))
    qat_start.capture = capture_module.capture = capture_once


def import_all(names: list[str]) -> None:
    """Import here what each fork would, but for ONNX Runtime, which starts a thread that a fork would lack."""
    for name in names:
        if not name.startswith(("onnxruntime", "__")):
            with suppress(Exception):
                importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208


def finished(child: int, stderr: Path) -> bool:
    """Wait; whether it ended by itself."""
    status = ended_by_itself(child)
    assert status in (0, None), stderr.read_text()
    return status == 0


def require_whole(output: Path) -> None:
    """Every file under its own name can be read to its end."""
    for path in output.rglob("*"):
        if path.name.startswith("."):
            continue
        match path.suffix:
            case ".onnx":
                onnx.checker.check_model(onnx.load(path), full_check=True)
            case ".json":
                (read_thumbnails if path.name == THUMBNAILS else read_record)(path)
            case ".pth":
                Checkpoint.load(path)
            case ".safetensors":
                load_tensors(path)


def digests(output: Path) -> dict[str, str]:
    """Of all that does not tell times."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if path.suffix in (".onnx", ".safetensors", ".yaml", ".md", ".svg", ".png")
    }


def run(folder: Path, weights: str, data: str, moments: int, seed: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(seed)
    report: dict[str, object] = {}
    capture_for_all(weights)
    for verb in COMMANDS:
        assert verb in VERBS
        place = folder / verb
        (place / "whole").mkdir(parents=True)
        (place / "first").mkdir()
        assert finished(start(verb, weights, data, place / "first" / "run", None), place / "first" / "stderr.txt")
        import_all(json.loads((place / "first" / "modules.json").read_text()))
        whole = start(verb, weights, data, place / "whole" / "run", None, place / "events.json")
        assert finished(whole, place / "whole" / "stderr.txt")
        events = read_events(place / "events.json")
        expected, kills, done = digests(place / "whole" / "run"), 0, 0
        while kills < moments:
            parent = place / str(done)
            parent.mkdir()
            is_done = False
            while not is_done:
                moment = events.moment(dice) if kills < moments else None
                is_done = finished(start(verb, weights, data, parent / "run", moment), parent / "stderr.txt")
                kills += not is_done
                require_whole(parent / "run")
            done += 1
            left = {path.name for path in parent.iterdir()} - {"modules.json"}
            assert left == {"run", "stderr.txt"}, left
            hidden = [path.name for path in (parent / "run").iterdir() if path.name.startswith(".")]
            assert not hidden, hidden
            assert digests(parent / "run") == expected, (verb, parent)
        report[verb] = {"kills": kills, "finished": done, "files": sorted(expected), **vars(events)}
    print(json.dumps(report))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
