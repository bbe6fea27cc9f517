"""What counterfactuals are measured by, and how the numbers become one index."""

from typing import Literal

from pydantic import Field, model_validator

from audit.config.section import Section


class MetricsConfig(Section):
    """Embeddings and perceptual distances; each is named wherever a number rests on it."""

    # Their words are those of `audit.embeddings.resolve`, which the run checks when it starts.
    embedding: str = Field(
        "auto",
        min_length=1,
        description="what realism and the judge rest on: phantom-factors, discriminator, or the .safetensors of a "
        "domain embedding (`spruce-audit train embedding`); auto: phantom-factors for the phantom, else discriminator",
    )
    perceptual: str = Field(
        "auto",
        min_length=1,
        description="whose feature maps the perceptual distance rests on, which inversion and search also minimise: "
        "the same choice as for embedding, and independent of it; or lpips-vgg, whose weights are fetched on demand",
    )
    realism_kernel: Literal["energy", "cmmd"] = Field(
        "energy",
        description="distance behind realism: energy distance, which sees spread as well as place; or CMMD's kernel, "
        "which sees hardly more than means (as earlier versions did)",
    )
    canonical: Literal["auto", "off", "require"] = Field(
        "auto", description="Inception FID, LPIPS and CMMD: where their weights are on the machine / never / or fail"
    )
    min_images: int = Field(16, ge=2, description="FID and MMD are refused on fewer images than this")
    axioms: int = Field(
        5,
        ge=0,
        description="query images on which it is tried whether the way back from a counterfactual ends at the start; "
        "costs one more counterfactual for each image and model; 0: none",
    )
    null_edits: int = Field(
        1,
        ge=1,
        description="how often in a row the images of axioms are inverted, without an edit, to see what that alone "
        "changes (10 in the literature); each time costs as much as inverting them",
    )


class RankingConfig(Section):
    """Weights of the index's components and the bootstrap."""

    validity: float = Field(1.0, ge=0, description="weight in the index")
    realism: float = Field(1.0, ge=0, description="weight in the index")
    sparsity: float = Field(1.0, ge=0, description="weight in the index")
    localisation: float = Field(
        4.0,
        ge=0,
        description="weight in the index; by default that of the four others together: it alone says what a decision "
        "rests on, they say how good a counterfactual is",
    )
    transfer: float = Field(1.0, ge=0, description="weight in the index")
    bootstrap: int = Field(1000, ge=100, description="draws of query images behind intervals and order")
    separation: float = Field(0.95, gt=0.5, lt=1, description="probability above which two models do not share a rank")

    @model_validator(mode="after")
    def _some_weight(self) -> "RankingConfig":
        if not any((self.validity, self.realism, self.sparsity, self.localisation, self.transfer)):
            raise ValueError("at least one component needs a weight above 0")
        return self
