"""Kill trainings with SIGKILL at random moments, resume each, and compare the weights with those of one left alone.

Run as a program with a folder, a number of kills and a seed; prints one JSON object. The trainings are forks of this
process, which has torch imported but no thread of its own.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # an optimizer imports it at its first step, which takes seconds
from tiny import make_trainer, plan

from repquant.train.checkpoint import checkpoint_path, newest_checkpoint, open_run
from repquant.train.recipe import Recipe

LONGEST_LIFE = 0.7
"""As a share of the time that a whole training takes; the shortest is none at all."""


def recipe() -> Recipe:
    return plan(epochs=5, learning_rate=0.01, ema_decay=0.9, custom_l2=True, clip_norm=5.0)


def train(folder: Path) -> None:
    """What `repquant train --resume` does."""
    training = make_trainer(recipe())
    open_run(folder, recipe(), resume=True)
    newest = newest_checkpoint(folder)
    if newest.checkpoint:
        training.restore(newest.checkpoint, checkpoint_path(folder, newest.checkpoint.step))
    training.fit(folder, lambda _: None, lambda _: None, checkpoint_steps=3)
    torch.save([training.model.state_dict(), training.result.state_dict()], folder / "final.pth")


def fork(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def finished(child: int) -> bool:
    """Wait for the child; whether it ended by itself."""
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the training failed"
        return True
    return False


def same(first: Path, second: Path) -> bool:
    states = zip(torch.load(first), torch.load(second), strict=True)
    return all(torch.equal(one[name], other[name]) for one, other in states for name in one)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(seed)
    (folder / "whole").mkdir()
    began = time.perf_counter()
    assert finished(fork(folder / "whole"))
    longest = LONGEST_LIFE * (time.perf_counter() - began)
    killed, identical, runs, steps = 0, True, 0, []
    while killed < kills:
        run = folder / f"run-{runs}"
        runs += 1
        is_done = False
        while not is_done:
            child = fork(run)
            if killed < kills:
                time.sleep(dice.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
            is_done = finished(child)
            if not is_done:
                killed += 1
                steps.append(max((int(path.stem.split("-")[1]) for path in run.glob("checkpoint-*.pth")), default=0))
        identical &= same(run / "final.pth", folder / "whole" / "final.pth")
    print(json.dumps({"kills": killed, "runs": runs, "identical": identical, "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
