"""Loading, packing and running the models that are trained."""
