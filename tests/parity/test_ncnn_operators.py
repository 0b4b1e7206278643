"""Every operator between two layers in files for ncnn: it computes what the simulation computes, or is refused."""

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
from repquant.quantize import quantize
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target

pytest.importorskip("ncnn", reason="pip install 'repquant[ncnn]'")

from repquant.runtimes.ncnn import NcnnRuntime

LEAST_EQUAL, MOST_STEPS = 0.99, 2.0
WRITTEN = {
    "layers": (
        "conv2d conv2d_same conv2d_strided conv2d_dilated conv2d_groups conv2d_depthwise linear functional_conv2d"
    ),
    "pointwise": (
        "relu relu6 hardtanh clamp clamp_min leaky_relu silu hardswish hardsigmoid sigmoid tanh elu mish scale shift"
        " minus divide"
    ),
    "arithmetic": (
        "add add_relu add_input add_self add_three add_broadcast sub mul gate_sigmoid gate_hardsigmoid glu cat cat_relu"
        " cat_pool"
    ),
    "shapes": "split split_uneven chunk narrow pad reshape flatten squeeze",
    "pooling": (
        "max_pool max_pool_relu spatial_pyramid amax avg_pool avg_pool_padded avg_pool_relu adaptive_avg_pool"
        " adaptive_avg_pool_3 mean mean_keep nearest"
    ),
}
QUICK = ("layers", "arithmetic")
REFUSED = {
    "conv1d": "Conv1d is not written",
    "linear_3d": r"aten\.transpose\.int\): it is not among",
    "slice": "steps over places",
    "pad_value": "only zeros around images",
    "nearest_size": "factors that are not whole",
    "sine": r"aten\.sin\.default\): it is not among",
}
CASES = {name: case for cases in GROUPS.values() for name, case in cases.items()}
IMAGES = torch.randn(8, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=[] if group in QUICK else pytest.mark.slow) for group in WRITTEN]
)
def test_simulation_and_runtime_agree(group, tmp_path):
    torch.manual_seed(0)
    graph = capture(Branches({name: CASES[name] for name in WRITTEN[group].split()}).eval(), IMAGES)
    target = resolve_target("ncnn")
    layout = find_layout(graph, target)
    ranges = activation_ranges("mse", collect_histograms(graph, layout, [IMAGES]), target)
    simulated = simulate(graph, make_plan(layout, ranges, target))
    export_file(simulated, tmp_path / "network.param", target)
    runtime = NcnnRuntime(tmp_path / "network.param", threads=1)
    given = runtime.run({"x": IMAGES.numpy()})
    with torch.inference_mode():
        expected = dict(zip(output_names(graph), (value.numpy() for value in run(simulated, IMAGES)), strict=True))
    assert given.keys() == expected.keys()
    for name, values in expected.items():
        differences = np.abs(given[name] - values) / ((values.max() - values.min()) / 255)
        assert (differences < 1e-3).mean() >= LEAST_EQUAL, name
        assert differences.max() <= MOST_STEPS, name


@pytest.mark.parametrize("name", REFUSED)
def test_an_operator_that_is_missing_is_named(name, tmp_path):
    network = Branches({name: CASES[name]}).eval()
    int8 = quantize(network, [IMAGES], target="ncnn", calibrator="max", rounding_images=0)
    with pytest.raises(InputError, match=REFUSED[name]):
        int8.save(tmp_path / "network.param")
    assert not [*tmp_path.iterdir()]
