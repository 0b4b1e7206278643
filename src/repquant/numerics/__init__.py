"""Pure tensor functions: affine quantization, streaming histograms, range searches, distances."""
