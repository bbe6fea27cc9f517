"""StyleGAN2 from the papers' equations: layers, networks, losses."""
