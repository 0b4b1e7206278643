"""Images in, batches out: sources, the evaluation transform, the loader and the calibration subset."""
