"""Methods of post-training quantization: the wiring of pure cores (`numerics`) on captured networks."""
