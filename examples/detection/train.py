"""Train the detector or the segmenter on the CPU. The same command goes on where it was interrupted.

python examples/detection/train.py detector --activation relu --data /data/photographs --output runs/detector-relu.pt
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn

from detector import Detector
from loss import detection_loss
from repquant.atomic import replace_file
from scenes import Scenes
from segmenter import Segmenter, segmentation_loss

TASKS = {"detector": (Detector, detection_loss), "segmenter": (Segmenter, segmentation_loss)}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
WARMUP = 200  # updates
SAVE_EVERY = 100


def build(task: str, activation: str) -> nn.Module:
    """Return an untrained network."""
    return TASKS[task][0](ACTIVATIONS[activation])


def load(task: str, activation: str, path: Path) -> nn.Module:
    """Return a trained network in its training form, ready to infer."""
    model = build(task, activation)
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model.eval()


def learning_rate(update: int, updates: int, peak: float) -> float:
    """Return the rate of an update: a straight line up, then half a cosine down to 0."""
    if update < WARMUP:
        return peak * (update + 1) / WARMUP
    return peak * (1 + math.cos(math.pi * (update - WARMUP) / max(1, updates - WARMUP))) / 2


def train(options: argparse.Namespace) -> None:
    """Train from the checkpoint at `options.output` on, or from the beginning where there is none."""
    torch.manual_seed(options.seed)
    model, loss_of = build(options.task, options.activation).train(), TASKS[options.task][1]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    scenes = Scenes("train", options.data, options.seed)
    first, updates = 0, options.scenes // options.batch
    if options.output.exists():
        state = torch.load(options.output, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["updates"]
    losses, start = [], time.perf_counter()
    for update in range(first, updates):
        images, truth = scenes.batch(range(update * options.batch, (update + 1) * options.batch))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, updates, options.learning_rate)
        loss = loss_of(model(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        done = update + 1
        if done % SAVE_EVERY == 0 or done == updates:
            with replace_file(options.output) as temporary:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "updates": done}
                torch.save(state, temporary)
            left = (time.perf_counter() - start) / (done - first) * (updates - done) / 60
            print(
                f"{done} of {updates} updates, loss {sum(losses) / len(losses):.4f}, {left:.1f} minutes left",
                flush=True,
            )
            losses = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--data", type=Path, help="folder with train and val, of photographs; else smooth textures")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint")
    parser.add_argument("--scenes", type=int, default=64_000, help="to train on, each seen once")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
