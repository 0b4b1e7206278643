import copy

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.reparam import reparameterize
from repquant.repvgg.insert_bn import (
    deploy_convolutions,
    insert_bn,
    load_inserted_bn,
    measure_outputs,
    merge_outputs,
    save_inserted_bn,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_function_is_preserved(network, images, dtype, tolerance):
    network, images = copy.deepcopy(network).to(dtype), images.to(dtype)
    inserted = insert_bn(network, measure_outputs(network, [images[:5], images[5:]]))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in inserted.modules()) == len(deploy_convolutions(network))
    with torch.no_grad():
        assert float((inserted(images) - network(images)).abs().max()) < tolerance


def test_exact_statistics_do_not_depend_on_the_batches(network, images):
    whole = measure_outputs(network, [images])
    parts = measure_outputs(network, [images[:1], images[1:6], images[6:]])
    for name in deploy_convolutions(network):
        assert torch.allclose(parts[name].mean, whole[name].mean, atol=1e-6)
        assert torch.allclose(parts[name].variance, whole[name].variance, rtol=1e-5, atol=1e-9)


def test_statistics_of_several_processes_are_merged_exactly(network, images):
    whole = measure_outputs(network, [images[:2], images[2:5], images[5:]])
    merged = merge_outputs(
        [measure_outputs(network, [images[:2], images[2:5]]), measure_outputs(network, [images[5:]])]
    )
    assert merged.keys() == whole.keys()
    for name, moments in whole.items():
        assert merged[name].count == moments.count
        torch.testing.assert_close(merged[name].mean, moments.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged[name].variance, moments.variance, rtol=1e-12, atol=1e-12)


def test_the_mean_is_that_in_front_of_the_bias(network, images):
    moments = measure_outputs(network, [images])["stem.conv"]
    conv = network.stem.conv
    y = nn.functional.conv2d(images, conv.weight, None, 2, 1).detach().double()
    assert moments.count == y[:, 0].numel()
    assert torch.allclose(moments.mean, y.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(moments.variance, y.var((0, 2, 3), correction=0), rtol=1e-5)


def test_a_moving_average_weighs_the_last_batches(network, images):
    first, second = measure_outputs(network, [images[:4]]), measure_outputs(network, [images[4:]])
    both = measure_outputs(network, [images[:4], images[4:]], "ema", momentum=0.25)
    for name in both:
        assert torch.allclose(both[name].mean, 0.75 * first[name].mean + 0.25 * second[name].mean)
        assert torch.allclose(both[name].variance, 0.75 * first[name].variance + 0.25 * second[name].variance)


def test_a_normalized_batch_is_normal(network, images):
    """With exact statistics, batch statistics and running ones are the same, so training mode changes nothing."""
    inserted = insert_bn(network, measure_outputs(network, [images]))
    with torch.no_grad():
        assert torch.allclose(copy.deepcopy(inserted).train()(images), network(images), rtol=1e-3, atol=1e-4)


def test_a_file_keeps_it(network, images, tmp_path):
    inserted = insert_bn(network, measure_outputs(network, [images]))
    save_inserted_bn(inserted, tmp_path / "bn.safetensors")
    loaded = load_inserted_bn(network, tmp_path / "bn.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images), inserted(images))


def test_files_that_do_not_fit(network, images, branches, training_network, tmp_path):
    path = tmp_path / "bn.safetensors"
    other = reparameterize(training_network(classes=7))
    save_inserted_bn(insert_bn(other, measure_outputs(other, [images])), path)
    with pytest.raises(InputError, match="are of few with 7 classes, the model is few with 5"):
        load_inserted_bn(network, path)
    other = copy.deepcopy(network)
    other.stages[0][0].conv.weight.data.mul_(2)
    save_inserted_bn(insert_bn(other, measure_outputs(other, [images])), path)
    with pytest.raises(InputError, match=r"of another few: the weights of .* are others"):
        load_inserted_bn(network, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"can't read .* give a file that `repquant insert-bn` wrote"):
        load_inserted_bn(network, path)
    with pytest.raises(InputError, match="can't read"):
        load_inserted_bn(network, tmp_path / "missing.safetensors")


def test_a_file_with_values_that_are_no_numbers_is_refused(network, images, tmp_path):
    inserted = insert_bn(network, measure_outputs(network, [images]))
    inserted.get_submodule("head").weight.data[0, 0] = float("nan")
    save_inserted_bn(inserted, tmp_path / "inserted.safetensors")
    with pytest.raises(InputError, match=r"head\.weight has values that are no numbers"):
        load_inserted_bn(network, tmp_path / "inserted.safetensors")


def test_statistics_of_another_network_are_refused(network, images):
    moments = measure_outputs(network, [images])
    del moments["stem.conv"]
    with pytest.raises(InputError, match="the statistics are not those of a few"):
        insert_bn(network, moments)


def test_no_images_and_unknown_averaging(network):
    with pytest.raises(InputError, match="there are no images to measure statistics on"):
        measure_outputs(network, [])
    with pytest.raises(InputError, match="averaging 'median' was given; allowed are exact, ema"):
        measure_outputs(network, [], "median")


@pytest.mark.parametrize("momentum", [2, 0, -1, float("nan")])
def test_a_momentum_that_gives_no_average(network, images, momentum):
    with pytest.raises(InputError, match="allowed is more than 0 and at most 1"):
        measure_outputs(network, [images], "ema", momentum)


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_statistics_that_are_no_numbers_are_not_inserted(network, images, value):
    with pytest.raises(InputError, match=r"the statistics of .* are no numbers"):
        insert_bn(network, measure_outputs(network, [images * value]))
