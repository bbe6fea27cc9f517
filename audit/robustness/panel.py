"""Models that are shown the same images: each answers for itself, and one that failed is asked no more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from audit.errors import Terminated
from audit.storage.stages import Stages


@dataclass(frozen=True)
class Panel:
    """The models, by name, and the stages that keep the answers of each; `failed` says how a model did."""

    models: Mapping[str, nn.Module]
    stages: Mapping[str, Stages] = field(default_factory=dict)
    failed: dict[str, BaseException] = field(default_factory=dict)

    @property
    def standing(self) -> list[str]:
        """Names of the models that have not failed."""
        return [name for name in self.models if name not in self.failed]

    def ask(
        self,
        stage: str,
        show: Callable[[], Tensor],
        answer: Callable[[nn.Module, Tensor], Tensor],
        code: Sequence[str],
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """Return by name what every model that stands answers to the images that `show` makes.

        They are made once, for the first model whose answer is not kept: as of `stage`, for `code` and `inputs`.
        """
        made = cache(show)

        def answered(model: nn.Module) -> Tensor:
            shown = made()
            try:
                return answer(model, shown)
            except Terminated:
                raise
            except (Exception, SystemExit) as error:
                raise _Refused from error  # a network may raise anything

        found = {}
        for name in self.standing:
            ask, stages = partial(answered, self.models[name]), self.stages.get(name, Stages())
            try:
                found[name] = stages.kept(stage, ask, code, **inputs)
            except _Refused as refused:
                self.failed[name] = refused.__cause__ or refused
        return found


class _Refused(Exception):
    """A model failed on images that were shown to it; the cause says how."""
