"""A second discriminator: small heads on the feature maps of a frozen, pretrained network.

A network trained on other tasks sees at once what a small discriminator learns late, so that heads on its frozen maps
soon tell drawn from real images. Source: Kumari et al. 2022, "Ensembling Off-the-shelf Models for GAN
Training" (arXiv:2112.09130), for a pretrained network beside StyleGAN2's own discriminator; Sauer et al. 2021,
"Projected GANs Converge Faster" (arXiv:2111.01007), for heads on several layers. Numbers in an embedding that is akin
to the network flatter the generator (Kynkäänniemi et al. 2023, arXiv:2203.06026): look at another one, too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.embeddings.embedding import MapNetwork
from audit.generator.stylegan2.networks import pixels
from audit.metrics.perceptual import unit_channels
from audit.training.generator.scales import head


class FeatureDiscriminator(nn.Module):
    """Images `[N, channels, R, R]` in [-1, 1] to a logit for each map of `network` `[N, maps]`, from fine to coarse.

    `network`, on `device`, is shown images of `side` pixels and is no part of the parameters or of the state. Raises
    MetricError where it does not read such images.
    """

    def __init__(self, network: MapNetwork, channels: int, side: int, device: torch.device) -> None:
        super().__init__()
        self.name, self.weights_sha256 = network.name, network.weights_sha256
        self._network = (network,)  # in a tuple, out of reach of parameters(), state_dict() and to()
        self._side = side
        with torch.no_grad():
            maps = self._maps(torch.zeros(1, channels, side, side, device=device))
        self.heads = nn.ModuleList([head(m.shape[1], m.shape[2]) for m in maps])

    def _maps(self, images: Tensor) -> list[Tensor]:
        shown = pixels(images)
        if shown.shape[-1] != self._side:
            shown = functional.interpolate(shown, (self._side, self._side), mode="bilinear", align_corners=False)
        # Unit variance instead of unit length, as the heads are initialised for.
        return [m * m.shape[1] ** 0.5 for m in unit_channels(self._network[0].maps(shown))]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([head(m) for head, m in zip(self.heads, self._maps(images), strict=True)], 1)
