"""The methods of post-training quantization, wired to captured graphs."""
