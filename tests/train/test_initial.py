import pytest
import torch

from repquant.errors import InputError
from repquant.models.checkpoints import save_model, save_state
from repquant.models.network import RepVGG, build
from repquant.models.reparam import reparameterize
from repquant.train.initial import bare_network, initial_network
from repquant.train.recipe import Recipe


def recipe(**changes: object) -> Recipe:
    return Recipe(**{"arch": "RepVGG-tiny", "num_classes": 3, "seed": 4} | changes)


def saved(tmp_path, arch: str = "RepVGG-tiny", num_classes: int = 5) -> tuple[RepVGG, str]:
    torch.manual_seed(0)
    model = build(arch, num_classes)
    path = tmp_path / "start.safetensors"
    save_model(model, path)
    return model, str(path)


def test_without_a_checkpoint_the_seed_decides():
    first, origin = initial_network(recipe())
    torch.manual_seed(99)
    again, _ = initial_network(recipe())
    other, _ = initial_network(recipe(seed=5))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert origin == "fresh weights, seed 4"


def test_a_checkpoint_with_as_many_classes_is_taken_whole(tmp_path):
    model, path = saved(tmp_path, num_classes=3)
    network, origin = initial_network(recipe(init_weights=path))
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert network.training
    assert origin == f"weights of {path}"


def test_another_number_of_classes_has_a_fresh_head(tmp_path):
    model, path = saved(tmp_path, num_classes=5)
    network, origin = initial_network(recipe(init_weights=path))
    fresh, _ = initial_network(recipe())
    for name, tensor in network.state_dict().items():
        source = fresh if name.startswith("head.") else model
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert origin == f"weights of {path}, which has 5 classes; fresh for 3: head.weight, head.bias"


def test_the_weights_that_ship_are_a_start():
    network, _ = initial_network(recipe(init_weights="builtin", num_classes=10))
    assert network.head.out_features == 10


def test_the_scales_of_a_hyper_search_are_a_start(tmp_path):
    search, path = saved(tmp_path, arch="RepOpt-VGG-tiny-search")
    with torch.no_grad():
        search.stem.scale3x3.weight.fill_(0.7)
    save_model(search, path)
    network, origin = initial_network(recipe(arch="RepOpt-VGG-tiny", init_weights=path))
    assert network.stem.scale3x3.weight[0].item() == pytest.approx(0.7)
    assert network.head.out_features == 3
    assert origin == f"fresh weights with the scales of {path}"


def test_a_repopt_network_without_a_hyper_search_says_what_it_has():
    _, origin = initial_network(recipe(arch="RepOpt-VGG-tiny"))
    assert origin == (
        "fresh weights, seed 4, and the scales that a hyper-search starts with: for those that it finds, train "
        "RepOpt-VGG-tiny-search and pass its model.safetensors as `init_weights`"
    )


def test_a_run_that_goes_on_does_not_need_the_checkpoint_that_it_began_with(tmp_path):
    network, origin = bare_network(recipe(init_weights=str(tmp_path / "gone.pth")))
    assert (network.spec.name, network.num_classes) == ("RepVGG-tiny", 3)
    assert origin == f"the run began with {tmp_path / 'gone.pth'}"
    assert bare_network(recipe())[1] == "fresh weights, seed 4"


def test_the_deploy_form_can_not_be_trained_on(tmp_path):
    path = tmp_path / "deploy.safetensors"
    save_model(reparameterize(build("RepVGG-tiny", 3).eval()), path)
    with pytest.raises(InputError, match="are in deploy form, which has no branches to train"):
        initial_network(recipe(init_weights=str(path)))


def test_another_architecture_is_refused(tmp_path):
    _, path = saved(tmp_path, arch="RepVGG-A0")
    with pytest.raises(InputError, match="do not fit RepVGG-tiny"):
        initial_network(recipe(init_weights=path))


OWN = """
import torch
from torch import nn


def network():
    body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def features():
    return nn.Conv2d(3, 4, 3)


def gray():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def own(tmp_path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_network_of_the_users_begins_with_the_seed_or_with_a_checkpoint(own, tmp_path):
    settings = {"arch": "", "model": f"{own}:network", "image_size": 8}
    first, origin = initial_network(recipe(**settings))
    again, _ = initial_network(recipe(**settings))
    assert origin == f"the network of {own}:network, seed 4"
    assert first.training
    assert torch.equal(first[5].weight, again[5].weight)
    save_state(again, tmp_path / "own.safetensors")
    third, origin = initial_network(recipe(**settings, seed=9, init_weights=str(tmp_path / "own.safetensors")))
    assert torch.equal(first[5].weight, third[5].weight)
    assert origin.endswith("with the weights of " + str(tmp_path / "own.safetensors"))
    assert bare_network(recipe(**settings))[0].state_dict().keys() == first.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": ""}, "which network"),
        ({"arch": "RepVGG-tiny", "model": "network"}, "pass one of them"),
        ({"arch": "", "model": "network", "num_classes": 7}, r"returns \(2, 3\); 7 logits an image are needed"),
        ({"arch": "", "model": "features"}, r"returns \(2, 4, 6, 6\)"),
        ({"arch": "", "model": "gray"}, "fails on images of 8 x 8 pixels"),
    ],
)
def test_networks_that_cannot_be_trained(own, settings, words):
    if "model" in settings:
        settings = settings | {"model": f"{own}:{settings['model']}"}
    with pytest.raises(InputError, match=words):
        initial_network(recipe(image_size=8, **settings))
