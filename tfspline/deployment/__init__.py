"""Exports for TensorFlow Serving and LiteRT, and latency measurement."""
