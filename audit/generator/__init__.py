"""The one StyleGAN2-ADA generator that draws every model's counterfactuals: networks, training, loading."""
