"""Kill trainings at random moments, resume each, and compare the weights with those of one left alone.

Run as a program with a folder, a number of kills and a seed; prints one JSON object. The trainings are forks of this
process, which has torch imported but no thread of its own.
"""

import json
import random
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # an optimizer imports it at its first step, which takes seconds
from tiny import make_trainer, plan

from kills import Moment, ended_by_itself, fork, read_events
from repquant.train.checkpoint import checkpoint_path, newest_checkpoint, open_run
from repquant.train.recipe import Recipe


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


def start(folder: Path, moment: Moment | None, events: Path | None = None) -> int:
    def work() -> int:
        try:
            train(folder)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    return fork(work, moment, events)


def finished(child: int) -> bool:
    """Wait for the child; whether it ended by itself."""
    status = ended_by_itself(child)
    assert status in (0, None), "the training failed"
    return status == 0


def same(first: Path, second: Path) -> bool:
    states = zip(torch.load(first), torch.load(second), strict=True)
    return all(torch.equal(one[name], other[name]) for one, other in states for name in one)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(seed)
    (folder / "whole").mkdir()
    assert finished(start(folder / "whole", None, folder / "events.json"))
    events = read_events(folder / "events.json")
    killed, identical, runs, steps = 0, True, 0, []
    while killed < kills:
        run = folder / f"run-{runs}"
        runs += 1
        is_done = False
        while not is_done:
            is_done = finished(start(run, events.moment(dice) if killed < kills else None))
            if not is_done:
                killed += 1
                steps.append(max((int(path.stem.split("-")[1]) for path in run.glob("checkpoint-*.pth")), default=0))
        identical &= same(run / "final.pth", folder / "whole" / "final.pth")
    print(json.dumps({"kills": killed, "runs": runs, "identical": identical, "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
