"""An engine that runs a classifier: images in, logits out."""

from pathlib import Path

from repquant.runtimes.interface import Array, FileRuntime
from repquant.runtimes.model_file import check_logits, require_classifier


class Classifier:
    """A file's engine that is held to the interface of a classifier.

    Args:
        engine: with one input and one output.
        path: of its file, for messages.

    Raises:
        InputError: more inputs or outputs; when called, an output that is no logits.
    """

    def __init__(self, engine: FileRuntime, path: Path) -> None:
        require_classifier(path, len(engine.inputs), len(engine.outputs))
        self.name, self.version = engine.name, engine.version
        self._engine, self._path = engine, path

    def __call__(self, *inputs: Array) -> Array:
        """Map normalized images (N, 3, H, W) to logits (N, K)."""
        logits = self._engine(*inputs)
        assert not isinstance(logits, tuple)
        return check_logits(self._path, logits, len(inputs[0]))
