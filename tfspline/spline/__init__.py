"""A network as a spline: piecewise activations, region codes, distances, affine maps, polygons and reports."""
