"""VAT: the direction against the eigenvector it approximates, and the loss against its formula."""

import pytest
import torch
from torch import Tensor, nn

from audit.training.classifier.objectives.vat import VirtualAdversarial, virtual_adversarial


def linear(dtype: torch.dtype, side: int = 4) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, 4)).to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) / side)
    return model


def grey(dtype: torch.dtype, n: int = 6, side: int = 4) -> Tensor:
    return 0.4 + 0.2 * torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosines(model: nn.Module, images: Tensor, xi: float, iterations: int = 40) -> Tensor:
    """Cosine `[N]`, without sign, of the found direction and the dominant eigenvector of the divergence's Hessian."""
    found = virtual_adversarial(model, images, eps=0.1, xi=xi, iterations=iterations, generator=seeded()) - images
    p, w = model(images).softmax(dim=1).detach(), model[1].weight.detach()
    hessian = torch.stack([w.T @ (torch.diag(row) - torch.outer(row, row)) @ w for row in p]).double()
    dominant = torch.linalg.eigh(hessian).eigenvectors[:, :, -1]
    return torch.nn.functional.cosine_similarity(found.flatten(1).double(), dominant, dim=1).abs()


def test_direction_is_the_dominant_eigenvector_of_the_hessian() -> None:
    assert (cosines(linear(torch.float64), grey(torch.float64), xi=1e-4, iterations=60) > 0.9999).all()


def test_more_iterations_come_closer() -> None:
    one, ten = (cosines(linear(torch.float64), grey(torch.float64), xi=1e-4, iterations=k).mean() for k in (1, 10))
    assert one < ten


def test_the_default_probe_survives_float32_and_that_of_the_paper_does_not() -> None:
    model, images = linear(torch.float32, side=28), grey(torch.float32, n=3, side=28)
    assert (cosines(model, images, xi=VirtualAdversarial().xi) > 0.999).all()
    assert cosines(model, images, xi=1e-6).min() < 0.9
    assert (cosines(model.double(), images.double(), xi=1e-6) > 0.999).all()


def test_perturbation_has_length_eps_and_stays_in_the_pixel_range() -> None:
    model = linear(torch.float32)
    found = virtual_adversarial(model, grey(torch.float32), eps=0.3, xi=0.01, iterations=1, generator=seeded())
    assert (found - grey(torch.float32)).flatten(1).norm(dim=1).tolist() == pytest.approx([0.3] * 6, rel=1e-5)
    black = torch.zeros(3, 1, 4, 4)
    cut = virtual_adversarial(model, black, eps=2.0, xi=0.01, iterations=1, generator=seeded())
    assert ((cut >= 0) & (cut <= 1)).all()
    assert (cut > 0).any()


def test_it_moves_the_output_further_than_a_random_direction() -> None:
    model, images = linear(torch.float64), grey(torch.float64, n=32)
    found = virtual_adversarial(model, images, eps=0.2, xi=0.01, iterations=1, generator=seeded())
    random = torch.randn(images.shape, generator=seeded(3)).double()
    random = images + 0.2 * random / random.flatten(1).norm(dim=1)[:, None, None, None]
    p = model(images).softmax(dim=1)
    moved = [(p * (p / model(x).softmax(dim=1)).log()).sum(dim=1).mean() for x in (found, random)]
    assert moved[0] > 2 * moved[1]


def test_loss_is_cross_entropy_plus_divergence_from_a_fixed_target() -> None:
    model, images = linear(torch.float64), grey(torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    objective = VirtualAdversarial(eps=0.4, weight=2.5)
    value = objective(model, images, labels, seeded())
    attacked = virtual_adversarial(model, images, eps=0.4, xi=0.1, iterations=1, generator=seeded())
    p, q = model(images).softmax(dim=1), model(attacked).softmax(dim=1)
    target = p.detach()
    by_hand = -p[torch.arange(6), labels].log().mean() + 2.5 * (target * (target / q).log()).sum(dim=1).mean()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-9)
    ours, expected = (torch.autograd.grad(v, model[1].weight)[0] for v in (value, by_hand))
    assert torch.allclose(ours, expected, rtol=1e-8, atol=1e-10)
