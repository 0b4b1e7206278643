"""What quantization-aware training minimizes, and what it does between steps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from repquant.errors import InputError
from repquant.graph.copies import copy_graph
from repquant.qat.distillation import block_error, output_loss
from repquant.qat.in_place import relu_in_place
from repquant.qat.network import activation_quantizers, qat_layers
from repquant.qat.rates import parameter_units
from repquant.qat.recipe import QatRecipe
from repquant.qat.taps import Taps
from repquant.train.losses import classification_loss
from repquant.train.task import Objective


class QatTask:
    """A network of `make_trainable` in training, a `train.task.Task`.

    Args:
        network: trained in place. Its first output is the logits (N, K) that accuracies and labels are about.
        recipe: how.
        teacher: captured float network whose outputs, and block outputs where the recipe says so, are the aim; it is
            copied.
        blocks: node of the network -> node of the teacher: the block outputs to compare, (N, C, H, W).

    Raises:
        InputError: a teacher with outputs of other shapes.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        recipe: QatRecipe,
        teacher: fx.GraphModule,
        blocks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if (given := _output_shapes(teacher)) != (expected := _output_shapes(network)):
            raise InputError(
                f"the teacher's outputs have the shapes {given} for an image, the network's {expected}: they can't be "
                "compared; give a teacher that was trained for the same, or distillation=0"
            )
        self.model: nn.Module = network
        self._network = network
        self._recipe = recipe
        self._teacher = relu_in_place(copy_graph(teacher).eval().requires_grad_(False))
        self._blocks = dict(blocks) if recipe.block_distillation else {}
        self._taps = Taps(network, self._blocks.keys())
        self._aim_taps = Taps(self._teacher, self._blocks.values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels with the recipe's weight decay, the rest without; each at its rate, see `qat.rates`."""
        recipe = self._recipe
        units = parameter_units(self.model) if recipe.optimizer == "adamw" else {}
        # A group for each parameter: the optimizer's state keeps the rates, for a training that is resumed.
        return [
            {
                "params": [parameter],
                "weight_decay": recipe.weight_decay if parameter.ndim > 1 else 0.0,
                "lr_scale": units.get(name, 1.0) * (recipe.scale_rate if name.endswith(".scale") else 1.0),
            }
            for name, parameter in self.model.named_parameters()
        ]

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """The optimizer is used as it is."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Switch rounding on from the first tensor, and the layers that read it, to the last."""
        epoch = step * self._recipe.epochs / total_steps
        quantizers = [*activation_quantizers(self._network).values()]
        gradual = self._recipe.gradual_epochs
        rounding = len(quantizers) if epoch >= gradual else int(len(quantizers) * epoch / gradual) + 1
        for position, quantizer in enumerate(quantizers):
            quantizer.enabled = position < rounding
        for layer in qat_layers(self._network).values():
            layer.weight.enabled = layer.input.enabled

    def objective(self, network: nn.Module, images: Tensor, labels: Tensor) -> Objective:
        """Distillation on the outputs and block outputs, and cross-entropy, as the recipe shares them out."""
        recipe = self._recipe
        with self._taps.values() as blocks:
            outputs = pytree.tree_leaves(network(images))
        logits = outputs[0]
        loss = logits.new_zeros(())
        aim_blocks: dict[str, Tensor] = {}
        if recipe.distillation > 0 or self._blocks:
            aims, aim_blocks = self._aims(images)
            loss = loss + recipe.distillation * output_loss(outputs, aims, recipe.temperature)
        if recipe.distillation < 1:
            labelled = classification_loss(logits, labels, recipe.label_smoothing)
            loss = loss + (1 - recipe.distillation) * labelled
        total = loss
        if self._blocks:
            errors = [block_error(blocks[name], aim_blocks[aim]) for name, aim in self._blocks.items()]
            total = total + recipe.block_distillation * torch.stack(errors).mean()
        return Objective(total, loss, logits)

    @torch.no_grad()
    def _aims(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the teacher's outputs and block outputs."""
        with self._aim_taps.values() as blocks:
            outputs = pytree.tree_leaves(self._teacher.to(images.device)(images))
        return outputs, blocks


def _output_shapes(graph: fx.GraphModule) -> list[tuple[int, ...]]:
    """Return the shape of each output for one image."""
    values = pytree.tree_leaves(graph.graph.output_node().args)
    return [tuple(value.meta["val"].shape[1:]) for value in values if isinstance(value, fx.Node)]
