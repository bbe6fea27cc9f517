"""StyleGAN2, written from the papers' equations: layers, networks, losses."""
