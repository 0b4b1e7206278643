"""How many images a file for phones takes."""

from torch import fx

from repquant.errors import InputError
from repquant.graph.interface import captured_of, flat_example


def file_batch(graph: fx.GraphModule, batch: int | None) -> int:
    """Return the number of images that the shapes in a file are for.

    Args:
        graph: from `capture`, or simulated.
        batch: that was asked for; None for 1, where the capture left the batch free, else as many as it has.

    Raises:
        InputError: none, or another number than that of the capture.
    """
    captured = captured_of(graph)
    if batch is None:
        return 1 if captured.dynamic_batch else len(flat_example(graph)[0])
    if batch < 1:
        raise InputError(f"batch {batch} was given; allowed are 1 or more, and None for any number of images")
    if not captured.dynamic_batch and batch != len(flat_example(graph)[0]):
        raise InputError(
            f"batch {batch} was given, and the network was captured for {len(flat_example(graph)[0])} images alone; "
            "give an example of as many"
        )
    return batch
