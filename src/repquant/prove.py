"""What a network in integers lost, and whether each runtime computes what the simulation does, image by image."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.bench.environment import environment
from repquant.data.loading import Example
from repquant.data.thumbnails import visible_pixels
from repquant.errors import InputError
from repquant.evaluate.disagreement import Keeper, largest_disagreements
from repquant.evaluate.stream import Evaluation, Pair
from repquant.evaluate.stream import evaluate as run_all
from repquant.graph.batches import rereadable
from repquant.graph.devices import device_of, full_precision
from repquant.graph.interface import as_returned, flattened, input_names, output_names
from repquant.graph.run import Batch, inputs_of
from repquant.methods.judges import Metric, figure_of
from repquant.methods.sensitivity import Sensitivity
from repquant.quantize import Quantized, captured
from repquant.report.disagreements import disagreement_records
from repquant.report.page import html
from repquant.report.reading import write_text
from repquant.report.record import Record, write_record
from repquant.report.rows import Row, measured_row, output_rows
from repquant.report.run import Run
from repquant.report.tables import COMPARISON, METRIC, OUTPUT, markdown_table
from repquant.report.thumbnails import EVALUATION, Thumbnails
from repquant.runtimes.available import ENGINES, default_runtimes, open_runtime, require, require_fit
from repquant.runtimes.interface import Runtime
from repquant.runtimes.pytorch import PyTorchRuntime

FLOAT, SIMULATED = "float", "int8"

_DISAGREEMENTS = 8  # images in the record


@dataclass(frozen=True)
class Proof:
    """The table of a proof; `print` shows it.

    Attributes:
        record: everything that was measured, as the command line keeps it.
        thumbnails: pictures of the images on which float and INT8 disagree most; none where the network sees no images.
    """

    record: Record
    thumbnails: Thumbnails = field(default_factory=lambda: Thumbnails(images={}))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The float network, the simulation and every runtime; one row for each output where there are several."""
        return self.record.rows

    def __str__(self) -> str:
        """The rows as a Markdown table."""
        columns = (
            *((OUTPUT,) if any(row.output for row in self.rows) else ()),
            *((METRIC,) if any(row.metric is not None for row in self.rows) else ()),
            *COMPARISON,
        )
        return markdown_table(self.record, columns)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the record as JSON, whole or not at all, and return its path.

        Raises:
            InputError: the folder can't be written.
        """
        write_record(self.record, Path(path))
        return Path(path)

    def to_html(self, path: str | PathLike[str] | None = None, *, analysis: Sensitivity | None = None) -> str:
        """Return the record as a page that needs no other file and no network.

        Args:
            path: where to write it too, whole or not at all.
            analysis: from `analyze`, for the part that says where the loss comes from.

        Raises:
            InputError: the folder can't be written.
        """
        text = html([Run(name="proof", record=self.record, thumbnails=self.thumbnails, sensitivity=analysis)])
        if path is not None:
            write_text(text, Path(path))
        return text


def prove(
    model: nn.Module,
    int8: Quantized,
    validation: Iterable[Batch],
    *,
    runtimes: Sequence[str] | None = None,
    evaluate: Metric | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Proof:
    """Run a float network, its simulation in integers and the file in every runtime on the same images.

    An output (N, K) counts as logits: classes, their agreement and the divergence of the softmax are compared. Other
    outputs are compared by value.

    Args:
        model: the float network that was quantized, or what `reparameterize` made of it.
        int8: from `quantize`.
        validation: batches as for `quantize`; where they hold labels (N,) behind the inputs, accuracy is measured.
        runtimes: that execute the file; they have to be installed. Default: that of the targets "litert", "executorch"
            and "ncnn", else "onnxruntime" and "openvino".
        evaluate: a metric such as mAP or mIoU; it is called once with each network.
        on_images: called with the number of images that all have finished since the last call.

    Raises:
        InputError: a runtime that is not installed or does not run what is made for the target, no images, labels that
            the network has no class for, or a metric that raises or returns no finite number.
        FloatingPointError: a network returned NaN or infinite values.
    """
    target = int8.plan.target
    if runtimes is None:
        runtimes = default_runtimes(target.name)
    for name in runtimes:
        require(name)
    require_fit(runtimes, target.name)
    batches = rereadable(validation)
    graph = captured(model, batches)
    if len(input_names(graph)) != len(input_names(int8.module)):
        raise InputError("the two networks take different inputs; give the float network that was quantized")
    with tempfile.TemporaryDirectory() as folder:
        suffixes = dict.fromkeys(ENGINES[name].suffix for name in runtimes)
        files = {suffix: int8.save(Path(folder) / f"int8{suffix}") for suffix in suffixes}
        engines: dict[str, Runtime] = {
            FLOAT: PyTorchRuntime(flattened(graph)),
            SIMULATED: PyTorchRuntime(flattened(int8.module)),
        }
        engines |= {name: open_runtime(name, files[ENGINES[name].suffix]) for name in runtimes}
        pairs: list[Pair] = [(name, FLOAT) for name in engines if name != FLOAT]
        pairs += [(name, SIMULATED) for name in runtimes]
        keeper = Keeper((SIMULATED, FLOAT), _DISAGREEMENTS)
        with full_precision(device_of(graph)):
            evaluation = run_all(
                engines, _labelled(graph, batches), compare=pairs, on_images=on_images, on_chunk=keeper.see
            )
        networks = {name: _as_module(graph, engine) for name, engine in engines.items()}
        metrics = {name: figure_of(evaluate, network) for name, network in networks.items()} if evaluate else {}
        sizes: dict[str, int | None] = {name: files[ENGINES[name].suffix].stat().st_size for name in runtimes}
        sizes[SIMULATED] = next(iter(sizes.values()), None)
    found = largest_disagreements(evaluation, SIMULATED, FLOAT, _DISAGREEMENTS)
    examples = {
        place: Example(f"image {place}", None if label is None else str(label), visible_pixels(image))
        for place, (image, label) in keeper.images.items()
    }
    outputs = output_names(graph)
    rows = [
        row
        for name, engine in engines.items()
        for row in _rows(evaluation, name, engine.version, outputs, sizes.get(name), metrics)
    ]
    record = Record(
        command="prove",
        output=None,
        config={"target": target.name, "runtimes": list(runtimes)},
        inputs={},
        environment=environment({name: engines[name] for name in runtimes}),
        notes=(target.note,) if target.note else (),
        float_row=rows[0],
        results=tuple(rows[1:]),
        disagreements=disagreement_records({SIMULATED: found}, examples, str),
        weight_bits=dict(int8.plan.weight_bits),
    )
    return Proof(record, Thumbnails.of({EVALUATION: examples.values()}))


@dataclass(frozen=True)
class _Labelled:
    images: tuple[Tensor, ...]
    labels: Tensor | None


def _labelled(graph: fx.GraphModule, batches: Iterable[Batch]) -> Iterator[_Labelled]:
    """Yield the inputs of each batch, and what follows them where it is a class for each image."""
    for batch in batches:
        inputs = tuple(x.cpu() for x in inputs_of(graph, batch))
        rest = [] if isinstance(batch, dict) else pytree.tree_leaves(batch)[len(inputs) :]
        labels = rest[0] if rest and isinstance(rest[0], Tensor) and rest[0].shape == (len(inputs[0]),) else None
        yield _Labelled(inputs, None if labels is None or labels.is_floating_point() else labels.cpu())


def _as_module(graph: fx.GraphModule, engine: Runtime) -> Callable[..., Any]:
    """Return a callable that takes and returns what the user's module does."""

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = inputs_of(graph, kwargs or args)
        result = engine(*(x.cpu().numpy() for x in inputs))
        arrays = result if isinstance(result, tuple) else (result,)
        return as_returned(graph, [torch.from_numpy(array) for array in arrays])

    return call


def _rows(
    evaluation: Evaluation,
    name: str,
    version: str,
    outputs: Sequence[str],
    file_bytes: int | None,
    metrics: dict[str, float],
) -> Iterator[Row]:
    is_float, is_simulated = name == FLOAT, name == SIMULATED
    row = measured_row(
        evaluation,
        name,
        runtime="pytorch" if is_float or is_simulated else name,
        runtime_version=version,
        calibrator=None if is_float else "int8",
        float_name=None if is_float else FLOAT,
        simulation_name=None if is_float or is_simulated else SIMULATED,
        file_bytes=file_bytes,
    )
    if metrics:
        row = replace(row, metric=metrics[name], metric_drop=None if is_float else metrics[FLOAT] - metrics[name])
    if len(outputs) == 1 or is_float:
        yield row
        return
    yield replace(row, output=outputs[0])
    yield from output_rows(evaluation, row, name, FLOAT, None if is_simulated else SIMULATED, outputs[1:])
