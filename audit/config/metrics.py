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


_SPARED = "or 0 where response counts: it judges edits, and rewards large ones"


class RankingConfig(Section):
    """Weights of the index's components and the bootstrap."""

    validity: float = Field(1.0, ge=0, description="weight in the index")
    realism: float | None = Field(None, ge=0, description=f"weight in the index; by default 1, {_SPARED}")
    sparsity: float = Field(1.0, ge=0, description="weight in the index")
    localisation: float | None = Field(
        None, ge=0, description="weight in the index; by default 4, or 2 where response counts"
    )
    transfer: float | None = Field(None, ge=0, description=f"weight in the index; by default 1, {_SPARED}")
    response: float = Field(
        8.0,
        ge=0,
        description="weight in the index; measured where there is a region, and near 1 for every sound model, so that "
        "it takes a large weight",
    )
    acquisition: bool = Field(
        True,
        description="whether response also asks, outside the region, about a tenth more and less exposure, contrast "
        "and gamma of the whole image; false where those can make the class",
    )
    bootstrap: int = Field(1000, ge=100, description="draws of query images behind intervals and order")
    separation: float = Field(0.95, gt=0.5, lt=1, description="probability above which two models do not share a rank")

    @model_validator(mode="after")
    def _some_weight(self) -> "RankingConfig":
        if not any(self.weights(response=True).values()) or not any(self.weights(response=False).values()):
            raise ValueError("at least one component needs a weight above 0, with and without response")
        return self

    def weights(self, *, response: bool) -> dict[str, float]:
        """Weights by component, where there is a `response` of all models or not."""
        response = response and self.response > 0
        usual = {"realism": 0.0, "localisation": 2.0, "transfer": 0.0} if response else {"localisation": 4.0}
        given = {"realism": self.realism, "localisation": self.localisation, "transfer": self.transfer}
        return {
            "validity": self.validity,
            "sparsity": self.sparsity,
            **{name: usual.get(name, 1.0) if value is None else value for name, value in given.items()},
            "response": self.response if response else 0.0,
        }
