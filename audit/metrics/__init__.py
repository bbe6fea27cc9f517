"""Measures of a counterfactual: how far, how realistic, how sparse, where, and who else agrees."""
