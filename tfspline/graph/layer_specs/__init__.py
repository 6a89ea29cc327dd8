"""Specs: everything that tfspline knows about layer classes and bare ops, one `LayerSpec` for each.

To add a built-in layer, add one entry to the `LAYERS` (or `OPS`, for a bare op) of the module that fits: `activations`,
`convolutions`, `elementwise`, `normalization`, `pooling`, `sequences` or `shapes`. Bare ops that move or multiply
numbers are in `movement`, `slicing` and `products`. `spec.LayerSpec` lists what an entry says. Custom layers get
theirs by `registry.register_channel_rule`.
"""
