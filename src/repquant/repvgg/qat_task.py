"""The training task of a RepVGG: any network's, and statistics of normalizations that move or not."""

from torch import fx

from repquant.errors import InputError
from repquant.qat.network import qat_layers
from repquant.qat.task import QatTask
from repquant.repvgg.kernels import EquivalentKernel, FoldedKernel
from repquant.repvgg.qat_recipe import RepVGGQatRecipe


class RepVGGQatTask(QatTask):
    """A network of `repvgg.qat_start` in training, a `train.task.Task`.

    Args:
        network: trained in place.
        recipe: how.
        teacher: captured float RepVGG in deploy form whose logits, and block outputs where the recipe says so, are the
            aim; it is copied.

    Raises:
        InputError: a teacher with another number of classes, or with other blocks when the recipe compares their
            outputs.
    """

    def __init__(self, network: fx.GraphModule, recipe: RepVGGQatRecipe, teacher: fx.GraphModule) -> None:
        blocks, aims = block_outputs(network), block_outputs(teacher)
        if recipe.block_distillation and [*blocks] != [*aims]:
            raise InputError(
                f"`block_distillation` compares block with block, and the teacher has the blocks {', '.join(aims)}, "
                f"the network {', '.join(blocks)}; pass `block_distillation=0`"
            )
        super().__init__(network, recipe, teacher, dict(zip(blocks.values(), aims.values(), strict=False)))
        self._repvgg_recipe = recipe

    def before_step(self, step: int, total_steps: int) -> None:
        """Switch rounding on from the first tensor to the last, and statistics to moving or not."""
        super().before_step(step, total_steps)
        recipe = self._repvgg_recipe
        epoch = step * recipe.epochs / total_steps
        for layer in qat_layers(self._network).values():
            if isinstance(layer.source, FoldedKernel):
                layer.source.bn.train(epoch < recipe.freeze_epochs)
            if isinstance(layer.source, EquivalentKernel):
                layer.source.is_refreshing = recipe.statistics == "refreshed" and step % recipe.refresh_steps == 0


def block_outputs(graph: fx.GraphModule) -> dict[str, str]:
    """Return the node that computes the output of the stem and of each block of the stages, by the block's name."""
    outputs: dict[str, str] = {}
    for node in graph.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            if path == "stem" or (path.startswith("stages.") and path.count(".") == 2):
                outputs[path] = node.name
    return outputs
