import pytest

from repquant.errors import InputError
from repquant.targets.target import TARGETS, resolve_target


def test_tensorrt_is_symmetric_int8_per_channel():
    target = resolve_target("tensorrt")
    assert (target.activation.signed, target.activation.symmetric, target.activation.bits) == (True, True, 8)
    assert (target.weight.qmin, target.weight.qmax, target.weight.channel_axis) == (-127, 127, 0)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_cpu_runtimes_take_unsigned_activations(name):
    target = resolve_target(name)
    assert (target.activation.qmin, target.activation.qmax) == (0, 255)
    assert not target.activation.symmetric
    assert (target.weight.bits, target.note) == (8, "")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_without_vnni_two_products_fit_sixteen_bits(name):
    target = resolve_target(name, fast_int8_dot=False)
    assert 2 * target.activation.qmax * target.weight.qmax <= 2**15 - 1
    assert "VNNI" in target.note


@pytest.mark.parametrize("name", ["litert", "executorch"])
def test_phones_are_signed_with_zero_points_and_multiply_in_32_bits_everywhere(name):
    target = resolve_target(name, fast_int8_dot=False)
    assert (target.activation.qmin, target.activation.qmax, target.activation.symmetric) == (-128, 127, False)
    assert (target.weight.qmin, target.weight.qmax, target.weight.channel_axis) == (-127, 127, 0)
    assert (target.quantized_terms, target.rounds_before_pointwise, target.note) == ("all", True, "")


def test_ncnn_leaves_out_the_most_negative_integer():
    target = resolve_target("ncnn", fast_int8_dot=False)
    assert (target.activation.qmin, target.activation.qmax, target.activation.symmetric) == (-127, 127, True)
    assert (target.weight.qmin, target.weight.qmax, target.weight.channel_axis) == (-127, 127, 0)
    assert (target.quantized_terms, target.float_biases, target.note) == ("none", True, "")


def test_tensorrt_does_not_depend_on_this_cpu():
    assert resolve_target("tensorrt", fast_int8_dot=False) == resolve_target("tensorrt")


@pytest.mark.parametrize("name", TARGETS)
def test_per_tensor_weights(name):
    assert resolve_target(name, per_tensor_weights=True).weight.channel_axis is None


def test_unknown_target():
    with pytest.raises(InputError, match=r"'tflite'.*tensorrt, onnxruntime, openvino, litert, executorch"):
        resolve_target("tflite")


@pytest.mark.parametrize("name", TARGETS)
def test_fewer_bits(name):
    target = resolve_target(name, weight_bits=4, activation_bits=6, fast_int8_dot=False)
    assert (target.weight.qmin, target.weight.qmax) == (-7, 7)
    assert target.activation.bits == 6
    assert "simulated" in target.note
    assert "VNNI" not in target.note
    with pytest.raises(InputError, match="2 to 8"):
        resolve_target(name, weight_bits=9)


def test_tensorrt_reads_no_int32():
    assert resolve_target("tensorrt").float_biases
    assert not any(resolve_target(name).float_biases for name in ("onnxruntime", "openvino"))


def test_storage_for_tensorrt():
    target = resolve_target("tensorrt", stored_weights="float", scale_type="float16")
    assert target.weights == "float"
    assert (target.activation.scale_type, target.weight.scale_type) == ("float16", "float16")


@pytest.mark.parametrize("settings", [{"stored_weights": "float"}, {"scale_type": "float16"}])
def test_storage_of_tensorrt_is_refused_elsewhere(settings):
    with pytest.raises(InputError, match="are for tensorrt, not for openvino"):
        resolve_target("openvino", **settings)


@pytest.mark.parametrize("settings", [{"stored_weights": "int4"}, {"scale_type": "bfloat16"}])
def test_unknown_storage(settings):
    with pytest.raises(InputError, match=r"unknown type of .*; allowed are (int8, float|float32, float16)"):
        resolve_target("tensorrt", **settings)
