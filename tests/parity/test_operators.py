"""Every operator between two layers: the simulation computes what both CPU runtimes compute from its file.

At least 99 % of the outputs must come from equal integers, and none may be further away than two steps: a value that
lies on a rounding border may fall to either side of it, as runtimes and simulation add floats in another order.
"""

from collections.abc import Callable, Collection

import pytest
import torch
from agreement import ENGINES, Deployed, deploy
from operator_cases import CORE, GROUPS, IMAGE_SHAPE, Branches
from torch import fx

from repquant.graph.capture import capture

LEAST_EQUAL = 0.99
MOST_STEPS = 2.0

QUICK = [(target, "core", name) for target in CORE for name in CORE[target]]
WHOLE = [(target, group, name) for target in CORE for group, cases in GROUPS.items() for name in cases]


def rows(targets: Collection[str]) -> pytest.MarkDecorator:
    """Parametrize with the rows for some targets."""
    quick = [row for row in QUICK if row[0] in targets]
    whole = [pytest.param(*row, marks=pytest.mark.slow) for row in WHOLE if row[0] in targets]
    return pytest.mark.parametrize(("target", "group", "name"), [*quick, *whole])


Get = Callable[[str, str], Deployed]


@pytest.fixture(scope="session")
def images():
    return torch.randn(8, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def deployed(images, tmp_path_factory) -> Get:
    """Captures each group's network once, and makes it once for a target."""
    graphs: dict[tuple[str, ...], fx.GraphModule] = {}
    networks: dict[tuple[str, str], Deployed] = {}

    def get(group: str, target: str) -> Deployed:
        if (group, target) not in networks:
            cases = CORE[target] if group == "core" else GROUPS[group]
            if tuple(cases) not in graphs:
                torch.manual_seed(0)
                graphs[tuple(cases)] = capture(Branches(cases).eval(), images)
            path = tmp_path_factory.mktemp("parity") / f"{group}.onnx"
            networks[group, target] = deploy(graphs[tuple(cases)], images, target, path)
        return networks[group, target]

    return get


# No file for OpenVINO's own target: there a sum reads one summand as it is. A file for ONNX Runtime rounds both, and
# OpenVINO leaves one rounding out, so that it is closer to the float network than the file says.
ROUNDS_LESS = {("onnxruntime", "openvino"): {"add", "add_relu", "add_input", "add_self", "add_three", "sub"}}

# OpenVINO dequantizes activations and multiplies them in float; the last bits of its sums decide at rounding borders.
FLOAT_PRODUCTS = {"openvino": {"matmul", "matmul_heads", "bmm"}}


# Seen on CPUs with VNNI: ONNX Runtime computes a softmax between quantizers from integers, by a table of its own.
APPROXIMATES = {"onnxruntime": {"softmax"}}

# ONNX Runtime quantizes the weights of a float convolution between two quantizers by itself, and none of ours is such:
# only a layer that is not understood can be one, behind a convolution whose end has to be rounded.
REQUANTIZES = {("onnxruntime", "onnxruntime"): {"conv3d"}}


@rows(CORE)
def test_simulation_and_runtimes_agree(deployed, target, group, name):
    network = deployed(group, target)
    assert network.sqnr_db(name) > 25, "the simulation is far from the float network"
    for engine in ENGINES:
        agreement = network.agreement(engine, name)
        if name in (ROUNDS_LESS | REQUANTIZES).get((target, engine), ()):
            assert agreement.steps <= 2 * MOST_STEPS, (engine, agreement)
            continue
        if name in APPROXIMATES.get(engine, ()):
            assert agreement.steps <= MOST_STEPS, (engine, agreement)
            continue
        least_equal = 0.95 if name in FLOAT_PRODUCTS.get(engine, ()) else LEAST_EQUAL
        assert agreement.equal >= least_equal, (engine, agreement)
        assert agreement.steps <= MOST_STEPS, (engine, agreement)


# What an engine has no integer kernel for, by the kind of the operator or the row; the layers on both sides still
# compute in integers.
FLOAT_KINDS = {"onnxruntime": {"ConvTranspose"}, "openvino": {"Deconvolution", "MatMul"}}
FLOAT_ROWS = {"onnxruntime": {"conv3d"}, "openvino": {"conv2d_circular", "roll", "conv3d"}}


@rows(ENGINES)
def test_layers_run_in_integers_on_the_runtime_of_the_target(deployed, target, group, name):
    network = deployed(group, target)
    if name in FLOAT_ROWS[target]:
        pytest.skip(f"{target} runs a layer of {name} in float")
    floats = [
        operator
        for operator in network.executed[target]
        if operator.is_product
        and not operator.is_integer
        and operator.kind not in FLOAT_KINDS[target]
        and operator.name.startswith(f"branches.{name}.")
    ]
    if target == "onnxruntime":  # a convolution that gives an output of the network gives floats
        floats = [operator for operator in floats if not operator.name.startswith(f"branches.{name}.after")]
    layers = {layer for layer in network.layout.layers if layer.startswith(f"branches.{name}.")}
    assert {f"branches.{name}.before.0"} <= layers
    assert not floats
