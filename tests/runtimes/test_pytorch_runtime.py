import numpy as np
import pytest
import torch
from torch import nn

from repquant.runtimes.pytorch import PyTorchRuntime


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)).eval()


def test_runs_the_module_without_gradients(images):
    module = network()
    expected = module(torch.from_numpy(images)).detach().numpy()
    runtime = PyTorchRuntime(module)
    logits = runtime(images)
    assert (runtime.name, runtime.version) == ("pytorch", torch.__version__)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_allclose(runtime(images[3:4]), expected[3:4], atol=1e-6)
    assert all(weight.grad is None for weight in module.parameters())


def test_module_without_weights(images):
    assert PyTorchRuntime(nn.Flatten().eval(), name="other").name == "other"
    np.testing.assert_array_equal(PyTorchRuntime(nn.Flatten().eval())(images), images.reshape(12, -1))


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"Sequential is in training mode; call \.eval\(\)"):
        PyTorchRuntime(network().train())
