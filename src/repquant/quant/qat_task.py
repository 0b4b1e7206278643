"""What quantization-aware training minimizes, and what it does between steps."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from repquant.errors import InputError
from repquant.models.network import RepVGG
from repquant.quant.qat import qat_modules, relu_in_place
from repquant.quant.qat_layers import EquivalentKernel, FoldedKernel, QatLayer
from repquant.quant.qat_recipe import QatRecipe
from repquant.quant.rates import parameter_units
from repquant.train.losses import classification_loss
from repquant.train.task import Objective

_LEAST_COSINE = 0.1


class QatTask:
    """A network of `quant.qat.prepare_qat` in training, a `train.task.Task`.

    Args:
        network: trained in place.
        recipe: how.
        teacher: float model in evaluation mode whose logits, and block outputs where the recipe says so, are the aim;
            it is copied.

    Raises:
        InputError: a teacher with another number of classes, or without blocks of the same shape when the recipe
            compares their outputs.
    """

    def __init__(self, network: RepVGG, recipe: QatRecipe, teacher: RepVGG) -> None:
        if teacher.num_classes != network.num_classes:
            raise InputError(
                f"the teacher has {teacher.num_classes} classes, the network {network.num_classes}: their logits can't "
                "be compared; give a teacher that was trained on the same classes, or --distillation 0"
            )
        self.model: nn.Module = network
        self._recipe = recipe
        self._teacher = relu_in_place(copy.deepcopy(teacher).eval().requires_grad_(False))
        self._blocks = _block_names(network) if recipe.block_distillation else ()
        if self._blocks and [*_block_names(teacher)] != [*self._blocks]:
            raise InputError(
                f"--block-distillation compares block with block, and the teacher {teacher.spec.name} has others than "
                f"{network.spec.name}; pass --block-distillation 0"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels with the recipe's weight decay, the rest without; each at its rate, see `quant.rates`."""
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
        """Switch rounding on from the first layer to the last, and statistics to moving or not."""
        epoch = step * self._recipe.epochs / total_steps
        modules = [*qat_modules(self.model).values()]
        gradual = self._recipe.gradual_epochs
        rounding = len(modules) if epoch >= gradual else int(len(modules) * epoch / gradual) + 1
        is_refreshing = self._recipe.statistics == "refreshed" and step % self._recipe.refresh_steps == 0
        for position, module in enumerate(modules):
            module.input.enabled = position < rounding
            if isinstance(module, QatLayer):
                module.weight.enabled = position < rounding
                if isinstance(module.source, FoldedKernel):
                    module.source.bn.train(epoch < self._recipe.freeze_epochs)
                if isinstance(module.source, EquivalentKernel):
                    module.source.is_refreshing = is_refreshing

    def objective(self, network: nn.Module, images: Tensor, labels: Tensor) -> Objective:
        """Distillation on the logits and block outputs, and cross-entropy, as the recipe shares them out."""
        recipe = self._recipe
        outputs: dict[str, Tensor] = {}
        aims: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self._blocks:
                hooks.callback(self.model.get_submodule(name).register_forward_hook(_keep(name, outputs)).remove)
                hooks.callback(self._teacher.get_submodule(name).register_forward_hook(_keep(name, aims)).remove)
            logits = network(images)
            aim = self._aim(images) if recipe.distillation > 0 or self._blocks else None
        loss = logits.new_zeros(())
        if aim is not None:
            loss = loss + recipe.distillation * distillation_loss(logits, aim, recipe.temperature)
        if recipe.distillation < 1:
            labelled = classification_loss(logits, labels, recipe.label_smoothing)
            loss = loss + (1 - recipe.distillation) * labelled
        total = loss
        if self._blocks:
            errors = [block_error(outputs[name], aims[name]) for name in self._blocks]
            total = total + recipe.block_distillation * torch.stack(errors).mean()
        return Objective(total, loss, logits)

    @torch.no_grad()
    def _aim(self, images: Tensor) -> Tensor:
        logits: Tensor = self._teacher.to(images.device)(images)
        return logits


def distillation_loss(logits: Tensor, aim: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean KL divergence of softmax(aim / T) from softmax(logits / T), times T^2.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. At T = 1 it is the KL of reports, in nats.

    Args:
        logits: (N, K).
        aim: (N, K) logits of the teacher.
        temperature: T.
    """
    student, teacher = (torch.log_softmax(values.float() / temperature, dim=1) for values in (logits, aim))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def block_error(output: Tensor, aim: Tensor) -> Tensor:
    """Return the squared error of a block's output to the teacher's, as a share of the teacher's squares.

    Channels are compared up to a positive factor: those of the network are scaled for rounding, the teacher's are not.
    Channels that have little in common, cosine below 0.1, have no such factor and are left out.

    Args:
        output: (N, C, H, W).
        aim: the same shape.
    """
    energy = aim.square().sum((0, 2, 3), keepdim=True)
    common = (output.detach() * aim).sum((0, 2, 3), keepdim=True)
    factor = common / energy
    usable = common > _LEAST_COSINE * (energy * output.detach().square().sum((0, 2, 3), keepdim=True)).sqrt()
    difference = torch.where(usable, output / torch.where(usable, factor, 1) - aim, 0)
    return difference.square().sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)


def _block_names(model: nn.Module) -> tuple[str, ...]:
    """The stem and the blocks of the stages, by names that hold in every form of a network."""
    stages = model.get_submodule("stages").named_children()
    return ("stem", *(f"stages.{number}.{name}" for number, stage in stages for name, _ in stage.named_children()))


def _keep(name: str, outputs: dict[str, Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(_block: nn.Module, _inputs: object, y: Tensor) -> None:
        outputs[name] = y

    return keep
