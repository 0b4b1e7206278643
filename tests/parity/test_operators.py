"""Every operator between two layers: the simulation computes what both CPU runtimes compute from its file.

At least 99 % of the outputs must come from equal integers, and none may be further away than two steps: a value that
lies on a rounding border may fall to either side of it, as runtimes and simulation add floats in another order.
"""

from collections.abc import Callable

import pytest
import torch
from agreement import ENGINES, Deployed, deploy
from operator_cases import CORE, GROUPS, IMAGE_SHAPE, Branches
from torch import fx

from repquant.graph.capture import capture
from repquant.targets.target import TARGETS

LEAST_EQUAL = 0.99
MOST_STEPS = 2.0

QUICK = [("core", name) for name in CORE]
WHOLE = [pytest.param(group, name, marks=pytest.mark.slow) for group, cases in GROUPS.items() for name in cases]
EVERY_CASE = pytest.mark.parametrize(("group", "name"), [*QUICK, *WHOLE])

Get = Callable[[str, str], Deployed]


@pytest.fixture(scope="session")
def images():
    return torch.randn(8, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def captured(images) -> Callable[[str], fx.GraphModule]:
    graphs: dict[str, fx.GraphModule] = {}

    def get(group: str) -> fx.GraphModule:
        if group not in graphs:
            torch.manual_seed(0)
            cases = {"core": CORE, **GROUPS}[group]
            graphs[group] = capture(Branches(cases).eval(), images)
        return graphs[group]

    return get


@pytest.fixture(scope="session")
def deployed(captured, images, tmp_path_factory) -> Get:
    """Makes each group's network once for a target."""
    networks: dict[tuple[str, str], Deployed] = {}

    def get(group: str, target: str) -> Deployed:
        if (group, target) not in networks:
            path = tmp_path_factory.mktemp("parity") / f"{group}.onnx"
            networks[group, target] = deploy(captured(group), images, target, path)
        return networks[group, target]

    return get


# OpenVINO adds what it has not rounded where a file for ONNX Runtime rounds both summands: it is closer to the float
# network than the file says.
ROUNDS_LESS = {("onnxruntime", "openvino"): {"add", "add_relu", "add_input", "add_self", "add_three", "sub"}}


@EVERY_CASE
@pytest.mark.parametrize("target", TARGETS)
def test_simulation_and_runtimes_agree(deployed, target, group, name):
    network = deployed(group, target)
    assert network.sqnr_db(name) > 25, "the simulation is far from the float network"
    for engine in ENGINES:
        agreement = network.agreement(engine, name)
        if name in ROUNDS_LESS.get((target, engine), ()):
            assert agreement.steps <= 2 * MOST_STEPS, (engine, agreement)
            continue
        assert agreement.equal >= LEAST_EQUAL, (engine, agreement)
        assert agreement.steps <= MOST_STEPS, (engine, agreement)


# What an engine has no integer kernel for, by the kind of the operator or the row; the layers on both sides still
# compute in integers.
FLOAT_KINDS = {"onnxruntime": {"ConvTranspose"}, "openvino": {"Deconvolution", "MatMul"}}
FLOAT_ROWS = {"onnxruntime": {"conv3d"}, "openvino": {"conv2d_circular", "roll", "conv3d"}}


@EVERY_CASE
@pytest.mark.parametrize("target", sorted(ENGINES))
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
