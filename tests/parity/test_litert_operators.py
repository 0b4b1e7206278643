"""Every operator between two layers in a .tflite file: LiteRT with XNNPACK computes what the simulation computes."""

import numpy as np
import pytest
import torch
from operator_cases import GROUPS, IMAGE_SHAPE, Branches

from repquant.errors import InputError
from repquant.export.files import export_file
from repquant.graph.capture import capture
from repquant.graph.interface import output_names
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.graph.run import run
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target

pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")

from repquant.runtimes.litert import LitertRuntime

LEAST_EQUAL, MOST_STEPS = 0.99, 2.0
UNWRITABLE = ("conv_transpose1d", "conv_transpose2d", "conv_transpose2d_groups", "conv3d")
QUICK = (
    "conv1d_depthwise",
    "conv2d_reflect",
    "conv2d_strided",
    "matmul_heads",
    "clamp",
    "prelu_channels",
    "add_relu",
    "cat_pool",
    "gate_sigmoid",
    "shuffle",
    "avg_pool_padded",
    "bilinear",
    "max_pool",
    "group_norm",
)
CASES = {name: case for cases in GROUPS.values() for name, case in cases.items()}
IN_FLOAT = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
IMAGES = torch.randn(8, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="core"),
        *(pytest.param(tuple(cases), id=group, marks=pytest.mark.slow) for group, cases in GROUPS.items()),
    ],
)
def test_simulation_and_runtime_agree(names, tmp_path):
    torch.manual_seed(0)
    graph = capture(Branches({name: CASES[name] for name in names if name not in UNWRITABLE}).eval(), IMAGES)
    target = resolve_target("litert")
    layout = find_layout(graph, target)
    ranges = activation_ranges("mse", collect_histograms(graph, layout, [IMAGES]), target)
    simulated = simulate(graph, make_plan(layout, ranges, target))
    export_file(simulated, tmp_path / "network.tflite", target)
    runtime = LitertRuntime(tmp_path / "network.tflite", threads=1)
    given = runtime.run({"x": IMAGES.numpy()})
    with torch.inference_mode():
        expected = dict(zip(output_names(graph), (value.numpy() for value in run(simulated, IMAGES)), strict=True))
    for name, values in expected.items():
        differences = np.abs(given[name] - values) / ((values.max() - values.min()) / 255)
        assert (differences < 1e-3).mean() >= LEAST_EQUAL, name
        assert differences.max() <= MOST_STEPS, name
    floats = {entry.name for entry in runtime.executed() if entry.kind in IN_FLOAT and not entry.is_integer}
    assert all("after" in name for name in floats), "a layer whose result is rounded runs in float"


@pytest.mark.slow
@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_layer_without_a_form_is_named(name, tmp_path):
    graph = capture(Branches({name: CASES[name]}).eval(), IMAGES)
    with pytest.raises(InputError, match=rf"branches\.{name}\.operator.*not written to files for litert"):
        export_file(graph, tmp_path / "network.tflite")
