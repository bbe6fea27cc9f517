"""The generator, and how query images are brought into its latent space."""

from typing import Literal

from pydantic import Field, model_validator

from audit.config.amounts import Memory
from audit.config.places import Weights
from audit.config.section import Section


class GeneratorConfig(Section):
    """The one generator that draws every counterfactual."""

    path: Weights = Field("shipped:phantom", description="the generator's file")
    format: str = Field(
        "auto",
        min_length=1,
        description="auto: a StyleGAN2 file, whose layout is recognised; or the name of a reader that a package adds",
    )

    @model_validator(mode="after")
    def _path_of_another_format(self) -> "GeneratorConfig":
        if self.format != "auto" and "path" not in self.model_fields_set:
            raise ValueError(f"format = '{self.format}' reads a path: give one")
        return self


class InversionConfig(Section):
    """How query images are brought into the generator's latent space (once, for all models)."""

    method: Literal["encoder", "optimise", "pti"] = Field(
        "pti",
        description="encoder: the encoder's code as it is; optimise: the pivot, no tuning; pti: pivotal tuning, too",
    )
    encoder: str | None = Field(None, description="encoder weights; default: those beside the generator, else none")
    pivot_steps: int = Field(80, ge=0, description="steps of W+ optimisation from the encoder's or a random code")
    pivot_lr: float = Field(0.1, gt=0, description="in units of the spread of random codes")
    pivot_delta_weight: float = Field(3e-4, ge=0, description="pull of the pivot towards W, in the same units")
    deltas: Literal["full", "low-rank"] = Field(
        "low-rank", description="form of the per-image changes of the generator's weights"
    )
    rank: int = Field(16, ge=1, description="rank of the change of a convolution's weights in the form low-rank")
    max_memory: Memory | None = Field(
        None, description="bound on what the images inverted together take; default: the audit's max_memory"
    )
    tuning_steps: int = Field(350, ge=0, description="steps of pivotal tuning of per-image generator weights")
    tuning_lr: float = Field(8e-3, gt=0, description="learning rate of pivotal tuning")
    stop_mse: float = Field(9e-5, ge=0, description="an image stops being tuned at this mean squared error in [0, 1]")
    l2_weight: float = Field(1.0, ge=0, description="weight of the mean squared error")
    perceptual_weight: float = Field(1e-3, ge=0, description="weight of the perceptual distance")
    locality_weight: float = Field(
        0.03, ge=0, description="weight of the likeness to the untuned generator near the pivot"
    )
    locality_alpha: float | None = Field(
        None, gt=0, description="distance from the pivot at which locality is held; default: sqrt(w_dim)"
    )
    batch_size: int = Field(32, ge=1, description="most images inverted together")
