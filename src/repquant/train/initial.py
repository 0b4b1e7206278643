"""The network that a training begins with: fresh, from a checkpoint, or with the scales of a hyper-search."""

from pathlib import Path

import torch
from torch import nn

from repquant.errors import InputError, given
from repquant.models.checkpoints import load_model, load_tensors
from repquant.models.dialects import detect, from_native
from repquant.models.network import build
from repquant.models.repopt import target_from_search
from repquant.models.user_network import make_network
from repquant.models.zoo import SEARCH_SUFFIX, builtin_weights, get_spec
from repquant.train.recipe import Recipe


def initial_network(recipe: Recipe) -> tuple[nn.Module, str]:
    """Return a network in training form, and a sentence on where its weights are from.

    Fresh weights come from the recipe's seed. With `recipe.init_weights` they are those of the checkpoint; a head for
    another number of classes is fresh. For a RepOpt-VGG that may also be the checkpoint of its hyper-search.

    A network of the user's own is that of `make_network`, with all weights of the checkpoint where there is one.

    Raises:
        InputError: as `load_model` and `make_network`; the checkpoint is in deploy form; neither an architecture nor a
            network of the user's own is named, or both are; or the latter does not give `num_classes` logits an image.
    """
    torch.manual_seed(recipe.seed)
    if recipe.model:
        return _own_network(recipe, recipe.init_weights), _origin_of_own(recipe)
    if not recipe.arch:
        raise InputError("which network? Pass `arch`, or `model` for one of your own")
    if not recipe.init_weights:
        return build(recipe.arch, recipe.num_classes), _fresh(recipe)
    path = builtin_weights() if recipe.init_weights == "builtin" else Path(recipe.init_weights)
    tensors = load_tensors(path)
    head = from_native("head.weight", detect(tensors))
    classes = len(tensors[head]) if head in tensors else recipe.num_classes
    if get_spec(recipe.arch).block == "repopt" and any("scale_identity" in key for key in tensors):
        search = load_model(path, recipe.arch + SEARCH_SUFFIX, classes)
        return target_from_search(search, recipe.seed, recipe.num_classes), f"fresh weights with the scales of {path}"
    source = load_model(path, recipe.arch, classes)
    if source.form != "training":
        raise InputError(f"weights {path} are in deploy form, which has no branches to train; give the training form")
    if classes == recipe.num_classes:
        return source.train(), f"weights of {path}"
    network = build(recipe.arch, recipe.num_classes)
    fresh = network.state_dict()
    kept = {name: tensor for name, tensor in source.state_dict().items() if tensor.shape == fresh[name].shape}
    network.load_state_dict(fresh | kept)
    return network, (
        f"weights of {path}, which has {classes} classes; fresh for {recipe.num_classes}: "
        f"{', '.join(name for name in fresh if name not in kept)}"
    )


def bare_network(recipe: Recipe) -> tuple[nn.Module, str]:
    """Return the network that a checkpoint of the run is loaded into, and a sentence on where its weights began.

    The file that `recipe.init_weights` names is not needed any more.
    """
    if recipe.model:
        return _own_network(recipe, ""), _origin_of_own(recipe)
    origin = f"the run began with {recipe.init_weights}" if recipe.init_weights else _fresh(recipe)
    return build(recipe.arch, recipe.num_classes), origin


def _own_network(recipe: Recipe, weights: str) -> nn.Module:
    if recipe.arch:
        raise InputError(
            f"{given('model', recipe.model)} and {given('arch', recipe.arch)} were given; pass one of them"
        )
    network = make_network(recipe.model, weights)
    side = recipe.training_size(0)
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, 3, side, side))
    except Exception as error:
        raise InputError(
            f"{given('model', recipe.model)}: the network fails on images of {side} x {side} pixels: {error}"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, recipe.num_classes):
        raise InputError(
            f"{given('model', recipe.model)}: for two images the network returns {shape or type(logits).__name__}; "
            f"{recipe.num_classes} logits an image are needed. Pass the `num_classes` that it has, or a network with "
            "another head"
        )
    return network.train()


def _origin_of_own(recipe: Recipe) -> str:
    if recipe.init_weights:
        return f"the network of {recipe.model} with the weights of {recipe.init_weights}"
    return f"the network of {recipe.model}, seed {recipe.seed}"


def _fresh(recipe: Recipe) -> str:
    origin = f"fresh weights, seed {recipe.seed}"
    if get_spec(recipe.arch).block != "repopt":
        return origin
    return (
        f"{origin}, and the scales that a hyper-search starts with: for those that it finds, train "
        f"{recipe.arch}{SEARCH_SUFFIX} and pass its model.safetensors as `init_weights`"
    )
