r"""What quantization-aware training does to a network, by method and setting, on training images held back from it.

    OMP_NUM_THREADS=1 python benchmarks/qat_evidence.py --json results/qat-evidence.json \
        --markdown results/qat-evidence.md --figures docs/figures

The built-in checkpoint and data, unless --arch, --weights and --data say otherwise. Every run starts from the same
integers, those of post-training quantization. All runs of a group differ from its first ones in what their names say.
Rows that are in the file given with --json already are not measured again, so an interrupted scan goes on.
"""

import argparse
import copy
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn

import qat_evidence_report
from qat_watch import Watch, rounded, summary
from repquant.atomic import replace_file
from repquant.bench.environment import environment
from repquant.data.calibration import draw
from repquant.data.datasets import open_split
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.evaluate.stream import evaluate
from repquant.methods.equalize import find_scales
from repquant.methods.ptq import PtqMethod
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.models.zoo import builtin_weights
from repquant.numerics.distance import softmax_kl
from repquant.qat.kernels import KernelSource
from repquant.qat.network import make_trainable, trained_graph, trained_integers
from repquant.report.rows import measured_row
from repquant.repvgg.branches import absorb, scale_branches, training_blocks
from repquant.repvgg.insert_bn import NormalizedConv2d, insert_bn, measure_outputs
from repquant.repvgg.kernels import EquivalentKernel, FoldedKernel
from repquant.repvgg.qat_recipe import RepVGGQatRecipe
from repquant.repvgg.qat_start import QatStart, StartOptions, captured, start_qat
from repquant.repvgg.qat_task import RepVGGQatTask
from repquant.runtimes.pytorch import PyTorchRuntime
from repquant.targets.target import Target, resolve_target
from repquant.train.held_back import hold_back
from repquant.train.optim import learning_rate, make_optimizer, set_learning_rate
from repquant.train.sampling import TrainingSet

ALL = 0
PLAIN, EQUIVALENT, AS_TRAINED, INSERTED = "plain", "equivalent-kernel", "branches as trained", "inserted-bn"
METHODS = (PLAIN, EQUIVALENT, AS_TRAINED, INSERTED)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One run.

    Attributes:
        method: of `repquant qat`; "branches as trained" is equivalent-kernel without the branches' normalizations
            being set to 1 at the start.
        rate: peak learning rate; of AdamW in steps of each kernel's grid, as in `repquant qat`.
        loss: distillation, or labels alone.
        frozen_after: inserted-bn: share of the training after which the statistics stay; 1 is never.
        statistics_images: inserted-bn: images that the inserted statistics are measured on; 0 is all.
        batch_size: 0 is that of the command line.
        validated: whether the result is measured on the validation split too.
    """

    group: str
    method: str
    bits: str = "W8A8"
    optimizer: str = "sgd"
    rate: float = 1e-3
    loss: str = "distillation"
    augmentation: str = "center-crop"
    batch_size: int = 0
    frozen_after: float = 0.5
    statistics_images: int = 512
    seed: int = 0
    validated: bool = False


def conditions() -> list[Condition]:
    runs = []
    for bits, optimizer, rate in (
        ("W8A8", "sgd", 1e-3),
        ("W8A8", "adamw", 3e-3),
        ("W4A8", "sgd", 1e-3),
        ("W4A8", "adamw", 3e-3),
    ):
        for method in METHODS:
            run = Condition(group="methods", method=method, bits=bits, optimizer=optimizer, rate=rate)
            is_default = optimizer == "adamw" and method != AS_TRAINED
            runs.append(replace(run, validated=is_default))
            if is_default and method != INSERTED:
                runs += [replace(run, seed=seed) for seed in (1, 2)]
    for bits, rate in (("W8A8", 1e-2), ("W4A8", 1e-2), ("W4A8", 3e-2)):
        run = Condition(group="learning rates", method=PLAIN, bits=bits, optimizer="adamw", rate=rate)
        runs += [run, replace(run, method=EQUIVALENT)]
    base = Condition(group="inserted-bn, distillation", method=INSERTED)
    runs += [
        base,
        replace(base, frozen_after=0.0, validated=True),
        replace(base, frozen_after=1.0, validated=True),
        replace(base, rate=1e-4),
        replace(base, rate=1e-2),
        replace(base, statistics_images=32),
        replace(base, statistics_images=ALL),
        replace(base, batch_size=8),
        replace(base, batch_size=128),
        replace(base, frozen_after=1.0, batch_size=8),
        replace(base, frozen_after=1.0, augmentation="random-resized-crop"),
        replace(base, method=PLAIN, augmentation="random-resized-crop"),
    ]
    base = Condition(group="inserted-bn, labels", method=INSERTED, loss="labels")
    runs += [
        base,
        replace(base, frozen_after=0.0),
        replace(base, augmentation="random-resized-crop", validated=True),
        replace(base, frozen_after=1.0, augmentation="random-resized-crop", validated=True),
        replace(base, rate=1e-2),
        replace(base, batch_size=8),
        replace(base, method=PLAIN),
        replace(base, method=PLAIN, augmentation="random-resized-crop", validated=True),
    ]
    return runs


class Bench:
    """Network, images and starts of one checkpoint."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model = load_model(Path(arguments.weights), arguments.arch, arguments.num_classes).eval()
        self.teacher = reparameterize(self.model).eval()
        self.transform = EvalTransform(image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
        self.rest, held = hold_back(open_split(arguments.data, "train"), arguments.held_back)
        self.held_back = [batch.images for batch in Loader(held, self.transform, 100)]
        with torch.no_grad():
            self.aims = torch.cat([self.teacher(images) for images in self.held_back])

    @cache  # noqa: B019  # one bench lives as long as the process
    def images(self, count: int) -> tuple[Tensor, ...]:
        """Images to calibrate on, held-back ones excluded; 0 stands for all."""
        chosen = draw(self.rest, count or len(self.rest))
        return tuple(batch.images for batch in Loader(self.rest, self.transform, 32, indices=chosen))

    @cache  # noqa: B019
    def start(self, bits: str) -> QatStart:
        options = StartOptions(method=EQUIVALENT, ptq=PtqMethod())
        return start_qat(self.model, options, target_of(bits), lambda: self.images(512), lambda: self.images(256))

    @cache  # noqa: B019
    def sources(self, method: str, bits: str, statistics_images: int) -> dict[str, KernelSource]:
        start = self.start(bits)
        if method == EQUIVALENT:
            return dict(start.sources)
        if method == AS_TRAINED:
            scales = find_scales(captured(self.teacher), "noise", self.images(512), target_of(bits))
            branches = absorb(scale_branches(self.model, *scales), start.deploy)
            return {f"{name}.conv": EquivalentKernel(block) for name, block in training_blocks(branches).items()}
        if method == INSERTED:
            inserted = insert_bn(start.deploy, measure_outputs(start.deploy, self.images(statistics_images)))
            return {
                name: FoldedKernel(layer.conv, layer.bn)
                for name, layer in inserted.named_modules()
                if isinstance(layer, NormalizedConv2d)
            }
        return {}

    @torch.no_grad()
    def fidelity(self, network: nn.Module) -> tuple[float, float]:
        """Return KL x 1000 and agreement in % to the float model on the held-back images, rounded in float."""
        network.eval()
        logits = torch.cat([network(images) for images in self.held_back])
        if not logits.isfinite().all():
            return float("inf"), 0.0
        agreement = (logits.argmax(1) == self.aims.argmax(1)).double().mean()
        return 1000 * float(softmax_kl(self.aims, logits).mean()), 100 * float(agreement)

    def validate(self, network: fx.GraphModule, start: QatStart) -> dict[str, Any]:
        """Return how the integers do on the validation split."""
        finished = trained_integers(network, start.graph, start.plan).simulated()
        engines = {"float": PyTorchRuntime(self.teacher), "trained": PyTorchRuntime(finished)}
        validation = Loader(open_split(self.arguments.data, "val"), self.transform, 100)
        evaluation = evaluate(engines, validation, compare=[("trained", "float")])
        row = measured_row(evaluation, "trained", runtime="pytorch", runtime_version="", float_name="float")
        names = ("images", "top1", "drop", "drop_ci95", "agreement", "kl")
        return {name: getattr(row, name) for name in names}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    rows: list[dict[str, Any]] = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    for condition in conditions():
        key = {"network": describe(arguments), **asdict(condition)}
        is_wanted = arguments.groups == "all" or condition.group in arguments.groups.split(";")
        if is_wanted and not any({name: row[name] for name in key} == key for row in rows):
            rows.append(key | measure(bench, condition))
            print(json.dumps({name: rows[-1][name] for name in (*key, "kl", "agreement", "seconds")}), flush=True)
            with replace_file(arguments.json) as temporary:
                lines = ",\n".join(json.dumps(row) for row in rows)
                temporary.write_text(f'{{"environment": {json.dumps(environment())},\n"rows": [\n{lines}\n]}}\n')
    if arguments.markdown is not None:
        text = qat_evidence_report.markdown(rows, environment())
        with replace_file(arguments.markdown) as temporary:
            temporary.write_text(text)
    if arguments.figures is not None:
        qat_evidence_report.write_figures(rows, arguments.figures)


def measure(bench: Bench, condition: Condition) -> dict[str, Any]:
    """Train once and return what was seen on the way."""
    arguments = bench.arguments
    began = perf_counter()
    sources = bench.sources(condition.method, condition.bits, condition.statistics_images)
    start = replace(bench.start(condition.bits), sources=copy.deepcopy(sources))
    # Inserted statistics move the kernels from step to step, and fixed scales would clip them.
    scales = "max" if condition.method == INSERTED else "fixed"
    network = make_trainable(start.graph, start.plan, sources=start.sources, weight_scales=scales)
    recipe = recipe_of(condition, arguments)
    task = RepVGGQatTask(network, recipe, captured(bench.teacher))
    optimizer = make_optimizer(task.parameter_groups(), recipe)
    watch = Watch(network)
    readings = [(0, *bench.fidelity(network), watch.read())]
    batches = TrainingSet(bench.rest, recipe).batches(0, arguments.steps, torch.device("cpu"))
    for step, batch in enumerate(batches):
        network.train()
        task.before_step(step, arguments.steps)
        rate = learning_rate(step, total_steps=arguments.steps, warmup_steps=0, peak=condition.rate)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad()
        assert batch.labels is not None
        objective = task.objective(network, batch.images, batch.labels)
        if not isfinite(objective.total.item()):
            readings.append((step, float("inf"), 0.0, watch.read()))
            break
        objective.total.backward()
        watch.after_backward()
        optimizer.step()
        watch.after_step(rate)
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            readings.append((step + 1, *bench.fidelity(network), watch.read()))
    steps, kl, agreement, inside = zip(*readings, strict=True)
    is_finite = isfinite(kl[-1])
    return {
        "steps": steps,
        "kl": [rounded(value) if isfinite(value) else None for value in kl],
        "agreement": [rounded(value) for value in agreement],
        "kl_unrounded": rounded(bench.fidelity(trained_graph(network, start.graph))[0]) if is_finite else None,
        "layers": [*watch.traces],
        **summary(inside),
        "validation": bench.validate(network, start) if condition.validated and is_finite else None,
        "seconds": round(perf_counter() - began),
    }


def recipe_of(condition: Condition, arguments: argparse.Namespace) -> RepVGGQatRecipe:
    return RepVGGQatRecipe(
        arch=arguments.arch,
        num_classes=arguments.num_classes,
        image_size=arguments.image_size,
        crop_ratio=arguments.crop_ratio,
        augmentation=condition.augmentation,
        batch_size=condition.batch_size or arguments.batch_size,
        optimizer=condition.optimizer,
        learning_rate=condition.rate,
        distillation=1.0 if condition.loss == "distillation" else 0.0,
        label_smoothing=arguments.label_smoothing,
        freeze_epochs=condition.frozen_after,  # the run counts as one epoch
        seed=condition.seed,
    )


def target_of(bits: str) -> Target:
    weight_bits, activation_bits = (int(number) for number in bits[1:].split("A"))
    return resolve_target("tensorrt", weight_bits=weight_bits, activation_bits=activation_bits)


def describe(arguments: argparse.Namespace) -> str:
    return f"{arguments.arch}, {Path(arguments.weights).stem}, {arguments.steps} steps of {arguments.batch_size}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="RepVGG-tiny")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--weights", default=builtin_weights(), help="checkpoint in training form")
    parser.add_argument("--data", default="builtin", help="folder with train/ and val/")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--crop-ratio", type=float, default=1.0)
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="of the runs on labels")
    parser.add_argument("--held-back", type=int, default=1000, help="training images to compare on")
    parser.add_argument("--steps", type=int, default=140, help="of each run")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, where a run has no other")
    parser.add_argument("--every", type=int, default=14, help="steps between two readings")
    parser.add_argument("--groups", default="all", help="all, or names of groups with semicolons")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True, help="rows are added to this file")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
