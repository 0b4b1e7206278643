"""A captured network, float or simulated, as a file for ExecuTorch."""
