import json

import pytest

from repquant.runtimes.tensorrt_layers import EngineLayer, count_kinds, read_layers


def layer(**tensor):
    return json.dumps({"Layers": [{"Name": "a", "LayerType": "x", "Inputs": [tensor], "Outputs": []}]})


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ({"Format/Datatype": "Int8"}, "INT8"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}, "INT8"),
        ({"Format/Datatype": "Row major linear FP32"}, "FP32"),
        ({"Format/Datatype": "Channel major FP16 format where C % 8 == 0"}, "FP16"),
        ({"DataType": "Half", "Format": "Row major"}, "FP16"),
        ({"DataType": "BFloat16"}, "BF16"),
        ({"DataType": "FP8E4M3"}, "FP8"),
        ({"DataType": "Int32"}, "other"),
        ({}, "other"),
    ],
)
def test_types_of_both_schemas(tensor, kind):
    assert read_layers(layer(**tensor)) == (EngineLayer("a", kind),)


def test_the_first_input_decides_and_an_output_where_there_is_none():
    entry = {
        "Name": "a",
        "LayerType": "Convolution",
        "Inputs": [{"DataType": "Int8"}],
        "Outputs": [{"DataType": "Float"}],
    }
    assert read_layers(json.dumps({"Layers": [entry]}))[0].kind == "INT8"
    assert read_layers(json.dumps({"Layers": [entry | {"Inputs": []}]}))[0].kind == "FP32"


def test_copies_and_names_alone():
    entries = [{"Name": "c", "LayerType": "Reformat", "Inputs": [{"DataType": "Int8"}]}, "only a name"]
    layers = read_layers(json.dumps({"Layers": entries}))
    assert layers == (EngineLayer("c", "reformat"), EngineLayer("only a name", "other"))
    assert count_kinds((*layers, layers[1])) == {"other": 2, "reformat": 1}
