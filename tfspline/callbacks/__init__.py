"""Keras callbacks: `EarlyBird`, `SplinePruning`, and the state that they save."""
