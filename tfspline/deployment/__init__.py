"""Export to TensorFlow Serving and LiteRT, and latency measurement."""
