"""What TensorRT and TensorRT-RTX share."""
