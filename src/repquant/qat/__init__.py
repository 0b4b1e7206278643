"""Quantization-aware training of any captured network: learned steps, distillation, the training task."""
