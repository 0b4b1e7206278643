"""Every operator between two layers in a .pte file: ExecuTorch with XNNPACK computes what the simulation computes."""

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

pytest.importorskip("executorch.runtime", reason="pip install 'repquant[executorch]'")

from repquant.runtimes.executorch import ExecutorchRuntime

LEAST_EQUAL, MOST_STEPS = 0.99, 2.0
UNWRITABLE = ("softplus", "conv3d")
QUICK = (
    "conv1d_depthwise",
    "conv2d_depthwise",
    "conv2d_strided",
    "conv_transpose2d",
    "conv_transpose2d_groups",
    "linear_3d",
    "clamp",
    "gelu_tanh",
    "mish",
    "add_relu",
    "cat_pool",
    "gate_sigmoid",
    "split",
    "mean",
    "adaptive_max_pool",
    "max_pool",
)
CASES = {name: case for cases in GROUPS.values() for name, case in cases.items()}
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
    target = resolve_target("executorch")
    layout = find_layout(graph, target)
    ranges = activation_ranges("mse", collect_histograms(graph, layout, [IMAGES]), target)
    simulated = simulate(graph, make_plan(layout, ranges, target))
    export_file(simulated, tmp_path / "network.pte", target)
    runtime = ExecutorchRuntime(tmp_path / "network.pte", threads=1)
    given = runtime.run({"x": IMAGES.numpy()})
    with torch.inference_mode():
        expected = dict(zip(output_names(graph), (value.numpy() for value in run(simulated, IMAGES)), strict=True))
    for name, values in expected.items():
        differences = np.abs(given[name] - values) / ((values.max() - values.min()) / 255)
        assert (differences < 1e-3).mean() >= LEAST_EQUAL, name
        assert differences.max() <= MOST_STEPS, name


@pytest.mark.parametrize(("name", "said"), [("softplus", "no form for aten.softplus"), ("conv3d", "no kernel for 3-d")])
def test_an_operator_without_a_form_is_named(name, said, tmp_path):
    int8 = quantize(
        Branches({name: CASES[name]}).eval(), [IMAGES], target="executorch", calibrator="max", rounding_images=0
    )
    with pytest.raises(InputError, match=said):
        int8.save(tmp_path / "network.pte")
    assert not (tmp_path / "network.pte").exists()
