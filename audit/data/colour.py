"""Grey from colour, defined once: luma of ITU-R BT.601 (section 2.5.1), as in Pillow's mode "L" and ImageNet-C.

torchvision's `rgb_to_grayscale` rounds 0.299 to 0.2989, by which white becomes 0.9999.
"""

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""


def luma(images: Tensor) -> Tensor:
    """Return the grey image `[N, 1, H, W]` of RGB images `[N, 3, H, W]`, differentiably."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
