"""Reading of StyleGAN2 files in every common layout, without running any code that they contain."""
