"""A captured network, float or simulated, as a file for LiteRT (TensorFlow Lite)."""
