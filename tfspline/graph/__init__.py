"""What is tied to what in a model: layer specs, units and their weight slices, surgery, and cost."""
