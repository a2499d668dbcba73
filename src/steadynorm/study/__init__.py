"""Controlled experiments: the same networks with and without batch normalization, everything else equal."""
