"""Specs: everything that tfspline knows about layer classes and bare ops, one `LayerSpec` for each.

To add a built-in layer, add one entry to the `LAYERS` of the module that fits: `activations`, `attention`,
`convolutions`, `einsum_dense`, `elementwise`, `normalization`, `pooling`, `recurrent`, `sequences` or `shapes`. Bare
ops have entries in `OPS`, also of `movement`, `slicing` and `products`. `spec.LayerSpec` lists what an entry says.
Custom layers get theirs by `registry.register_channel_rule`.
"""
