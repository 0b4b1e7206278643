"""What the trainer adds to a training step, what a step of `qat` costs, and what a second process brings.

    python benchmarks/train_step.py [--parts a,b,c] [--precision float32] [--steps 30] [--markdown FILE]

a. A step of `Trainer.fit`, with all that it does between two steps, against the same network's step in a loop without
   the product: turn by turn in one process. Target: at most 1.05 times.
b. A step of `qat` against a float training step of the deploy network, both in the product, in an order that is
   shuffled each round. By default `qat` distills from the float model; "on labels" it does not. Peak memory comes from
   processes of their own. Always in float32. Target: at most 1.5 times for both.
c. Two processes with one thread each under torchrun against one process with two threads, all with the same number of
   images a step, several times in turn. Target: at least 1.2 times the images a second.

Every step has the same images, in memory as bytes and normalized on both sides, so that decoding is no part of it.
Ratios are medians of the rounds' ratios with a 95 % bootstrap interval. The last line on stdout is one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from fresh_process import alone, peak_mb
from repquant.allocation import keep_freed_memory
from repquant.bench.environment import environment, machine_lines
from repquant.bench.latency import Ratio, measure_latency, ratio
from repquant.data.loading import Batch
from repquant.data.transforms import EvalTransform
from repquant.methods.ptq import PtqMethod
from repquant.models.network import RepVGG, build
from repquant.models.reparam import reparameterize
from repquant.qat.network import make_trainable
from repquant.repvgg.qat_recipe import RepVGGQatRecipe
from repquant.repvgg.qat_start import StartOptions, captured, start_qat
from repquant.repvgg.qat_task import RepVGGQatTask
from repquant.targets.target import resolve_target
from repquant.train.distributed import ONE, Ranks, started_by_torchrun
from repquant.train.loop import Trainer
from repquant.train.meters import Meter
from repquant.train.recipe import PRECISIONS, Recipe
from repquant.train.step import Stepper
from repquant.train.task import FloatTask
from result_tables import Table, markdown_lines, show

CPU = torch.device("cpu")
TRAINER, LOOP, DEPLOY = "Trainer.fit", "plain loop", "float, deploy network"
QAT_STEPS = {
    f"{method}, {what}": (method, distillation)
    for method in ("equivalent-kernel", "plain")
    for what, distillation in (("distilled", 1.0), ("on labels", 0.0))
}
SMALL_STEPS = {"learning_rate": 1e-4, "precision": "float32"}
"""In b: a network without normalization would diverge at the rate of float training, and `qat` is for float32 alone."""

LAYOUTS = {  # processes, threads of each, synchronized batch statistics
    "one process, 2 threads": (1, 2, True),
    "two processes, 1 thread each": (2, 1, True),
    "the same, batch statistics of each": (2, 1, False),
}


def main() -> None:
    arguments = parse()
    keep_freed_memory()  # as the command line does
    if arguments.worker:
        work(arguments)
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    settings = ("arch", "image_size", "batch_size", "precision", "steps", "rounds")
    result: dict[str, Any] = {name: getattr(arguments, name) for name in settings}
    measure = {"a": measure_trainer, "b": measure_qat, "c": measure_processes}
    result["parts"] = {part: measure[part](arguments) for part in arguments.parts}
    result |= {"load_average_before": round(load, 2), "environment": environment()}
    show(tables(result), width=140)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=parts, default=("a", "b", "c"), help="a, b, c, with commas")
    parser.add_argument("--arch", default="RepVGG-A0")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, over all processes together")
    parser.add_argument("--precision", choices=PRECISIONS[:2], default="float32")
    parser.add_argument("--steps", type=int, default=30, help="that are measured, of each kind")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the layouts in c")
    parser.add_argument("--threads", type=int, help="in a and b; torch's own choice where not given")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--worker", choices=("synchronized", "own"), help=argparse.SUPPRESS)
    return parser.parse_args()


def parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= {"a", "b", "c"}:
        raise argparse.ArgumentTypeError(f"{text}: give some of a, b, c with commas")
    return names


class InMemory:
    """Stands for a `TrainingSet`: one epoch of steps with this process's part of the same images each."""

    def __init__(self, arguments: argparse.Namespace, ranks: Ranks = ONE) -> None:
        generator = torch.Generator().manual_seed(ranks.rank)
        count, side = arguments.batch_size // ranks.world_size, arguments.image_size
        self.steps = arguments.warm_up + arguments.steps
        self._pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        self._labels = torch.randint(arguments.num_classes, (count,), generator=generator)
        self._transform = EvalTransform(image_size=side)

    def batch(self) -> Batch:
        return Batch(self._transform.normalize(self._pixels), self._labels)

    def batches(self, first: int, end: int, device: torch.device) -> Iterator[Batch]:  # noqa: ARG002
        for _ in range(first, end):
            yield self.batch()


def settings(arguments: argparse.Namespace, **others: Any) -> dict[str, Any]:
    """The arguments of a recipe."""
    names = ("arch", "num_classes", "image_size", "batch_size", "precision")
    return {name: getattr(arguments, name) for name in names} | {"epochs": 1} | others


def network(arguments: argparse.Namespace) -> RepVGG:
    torch.manual_seed(0)
    return build(arguments.arch, arguments.num_classes)


def fit(arguments: argparse.Namespace, ranks: Ranks, on_step: Callable[[], None], **others: Any) -> None:
    """Train one epoch in memory; `on_step` is called between two steps."""
    recipe, images = Recipe(**settings(arguments, **others)), InMemory(arguments, ranks)
    task = FloatTask(network(arguments), recipe)
    trainer = Trainer(task, recipe, images, [images.batch()], CPU, ranks)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), lambda _: on_step(), lambda _: None)


# a: the trainer


def measure_trainer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    samples: dict[str, list[float]] = {TRAINER: [], LOOP: []}
    step = plain_loop(arguments)
    began = perf_counter()

    def on_step() -> None:
        nonlocal began
        between = perf_counter()
        step()
        ended = perf_counter()
        samples[TRAINER].append(between - began)
        samples[LOOP].append(ended - between)
        began = perf_counter()

    fit(arguments, ONE, on_step)
    measured = {name: [1000 * second for second in seconds[arguments.warm_up :]] for name, seconds in samples.items()}
    return [step_row(name, measured[name], measured[LOOP]) for name in (LOOP, TRAINER)]


def plain_loop(arguments: argparse.Namespace) -> Callable[[], None]:
    """Return a training step that knows nothing of the product but its network and images."""
    model, images, recipe = network(arguments).train(), InMemory(arguments), Recipe(**settings(arguments))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    def step() -> None:
        batch = images.batch()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            logits = model(batch.images).float()
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()

    return step


# b: quantization-aware training


def measure_qat(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    names = (DEPLOY, *QAT_STEPS)
    steps = {name: product_step(arguments, name) for name in names}
    samples = measure_latency(steps, rounds=arguments.steps, warm_up=arguments.warm_up)
    memory = {name: alone(measure_memory, arguments, name) for name in names}
    rows = []
    for name in names:
        row = step_row(name, samples[name], samples[DEPLOY]) | memory[name]
        row["peak_ratio"] = row["peak_mb"] / memory[DEPLOY]["peak_mb"]
        row["own_ratio"] = row["own_mb"] / memory[DEPLOY]["own_mb"]
        rows.append(row)
    return rows


def product_step(arguments: argparse.Namespace, name: str) -> Callable[[], None]:
    """Return a step of the product's, of the deploy network in float or of a method of `qat`."""
    model, images = normalized(network(arguments), InMemory(arguments).batch().images), InMemory(arguments)
    deploy = reparameterize(model)
    if name == DEPLOY:
        recipe = Recipe(**settings(arguments, **SMALL_STEPS))
        stepper = Stepper(FloatTask(deploy, recipe), recipe, CPU, ONE)
    else:
        method, distillation = QAT_STEPS[name]
        recipe = RepVGGQatRecipe(**settings(arguments, method=method, distillation=distillation, **SMALL_STEPS))
        target = resolve_target("tensorrt", fast_int8_dot=True)
        nothing_else = PtqMethod(equalization="none", rounding="nearest")
        options = StartOptions(method=method, ptq=nothing_else, calibrator="max")
        start = start_qat(model, options, target, lambda: [images.batch().images], lambda: [])
        training = make_trainable(start.graph, start.plan, sources=start.sources)
        stepper = Stepper(RepVGGQatTask(training, recipe, captured(deploy)), recipe, CPU, ONE)
    meter = Meter(CPU)

    def step() -> None:
        stepper.take(images.batches(0, 1, CPU), step=0, total_steps=1, rate=recipe.learning_rate, meter=meter)

    return step


@torch.no_grad()
def normalized(model: RepVGG, images: torch.Tensor) -> RepVGG:
    """Give a fresh network the batch statistics of the images, without which its deploy form overflows."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


def measure_memory(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Peak memory of a process that takes some steps, and how much of it the imported libraries do not have."""
    before = peak_mb()
    step = product_step(arguments, name)
    for _ in range(3):
        step()
    peak = peak_mb()
    return {"peak_mb": peak, "own_mb": peak - before}


# c: processes


def measure_processes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(arguments.rounds):
        for name in LAYOUTS:
            seconds[name].append(start_layout(arguments, *LAYOUTS[name]))
    baseline = next(iter(LAYOUTS))
    rows = []
    for name, samples in seconds.items():
        compared = ratio(seconds[baseline], samples)
        speed = arguments.batch_size / statistics.median(samples)
        rows.append({"layout": name, "images_per_second": speed, **ratio_cells(compared), "seconds_a_step": samples})
    return rows


def start_layout(arguments: argparse.Namespace, processes: int, threads: int, synchronized: bool) -> float:
    """Train in fresh processes and return the median seconds of a step."""
    names = ("arch", "num_classes", "image_size", "batch_size", "precision", "steps", "warm_up")
    options = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, *options]
    done = subprocess.run(
        [*command, "--worker", "synchronized" if synchronized else "own"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def work(arguments: argparse.Namespace) -> None:
    """Be one of the processes of a layout."""
    ends = [perf_counter()]
    with started_by_torchrun("cpu") as (ranks, _):
        fit(arguments, ranks, lambda: ends.append(perf_counter()), sync_bn=arguments.worker == "synchronized")
    measured = ends[arguments.warm_up :]
    if ranks.is_main:
        print(statistics.median(later - earlier for earlier, later in pairwise(measured)))


# What a person reads

STEP_COLUMNS = ("step", "median ms", "ratio [95 %]", "target")
QAT_COLUMNS = (*STEP_COLUMNS, "peak MB", "ratio", "without libraries, MB", "ratio")
PROCESS_COLUMNS = ("layout", "images/s", "ratio [95 %]", "target")


def step_row(name: str, samples: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    compared = ratio(samples, baseline)
    return {"step": name, "median_ms": statistics.median(samples), **ratio_cells(compared), "samples_ms": [*samples]}


def ratio_cells(compared: Ratio) -> dict[str, Any]:
    return {"ratio": compared.median, "ratio_ci95": compared.ci95}


def cells(part: str, row: Mapping[str, Any], is_baseline: bool) -> tuple[str, ...]:
    low, high = row["ratio_ci95"]
    compared = "1" if is_baseline else f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    target = "" if is_baseline else {"a": "at most 1.05", "b": "at most 1.5", "c": "at least 1.2"}[part]
    if part == "c":
        return row["layout"], f"{row['images_per_second']:.1f}", compared, target
    step = (row["step"], f"{row['median_ms']:.1f}", compared, target)
    if part == "a":
        return step
    peak, own = (f"{row[name]:.2f}" for name in ("peak_ratio", "own_ratio"))
    return *step, f"{row['peak_mb']:.0f}", peak, f"{row['own_mb']:.0f}", own


def tables(result: Mapping[str, Any]) -> list[Table]:
    columns = {"a": STEP_COLUMNS, "b": QAT_COLUMNS, "c": PROCESS_COLUMNS}
    return [
        (columns[part], [cells(part, row, number == 0) for number, row in enumerate(rows)])
        for part, rows in result["parts"].items()
    ]


def markdown(result: Mapping[str, Any]) -> str:
    lines = [
        "# What a training step costs",
        "",
        f"`python benchmarks/train_step.py`, {result['arch']}, {result['batch_size']} images of {result['image_size']} "
        f"px a step, {result['steps']} steps of each kind, {result['rounds']} turns of the processes. The precision is "
        f"{result['precision']}, that of `qat` and what it is compared with float32.",
        "",
    ]
    lines += markdown_lines(tables(result))
    lines += [
        *machine_lines(result["environment"], result["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
