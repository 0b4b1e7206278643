"""A float ONNX file as a module of torch."""
