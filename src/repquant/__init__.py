"""repquant: re-parameterized classifiers from training to a verified INT8 model."""

__version__ = "0.1.0"
