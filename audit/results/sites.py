"""What several audits were joined from."""

from pydantic import Field

from audit.results.row import Interval, Row


class Site(Row):
    """One of the audits that were joined, made where its data lie."""

    name: str
    n: int = Field(description="audited images")
    created: str
    version: str = Field(description="of spruce-audit")


class OverSites(Row):
    """One number at every site, and how far the sites differ."""

    model: str = Field(description="of a difference, both: 'A - B'")
    metric: str = Field(description="dotted path, for instance 'robust.pgd.8/255'")
    by_site: dict[str, Interval]
    across: Interval | None = Field(
        description="at a site like these: mean and interval of random effects (DerSimonian & Laird; Hartung & Knapp); "
        "None: the number is not joined, or the sites do not tell its variance"
    )
    q: float | None = Field(default=None, description="Cochran's Q; of shares, of their log-odds, as all that follows")
    p_value: float | None = Field(default=None, description="of Q: the sites differ by chance only")
    i2: float | None = Field(default=None, description="share of the variation that is not chance")
    tau2: float | None = Field(default=None, description="variance between the sites")


class Sites(Row):
    """What the numbers of several sites were joined from."""

    sites: list[Site]
    numbers: list[OverSites]
