"""A captured network, float or simulated, as files for ncnn."""
