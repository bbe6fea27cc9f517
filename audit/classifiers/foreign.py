"""The network under audit is a user's code: whatever it raises becomes one sentence that names the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from audit.classifiers.probe import first_line
from audit.errors import AuditError, ModelFault, Terminated
from audit.runtime.memory import out_of_memory


@contextmanager
def foreign_code(name: str, images: Tensor) -> Iterator[None]:
    """Turn whatever the network of classifier `name` raises on `images` `[N, C, H, W]` into a ModelFault.

    Memory that ran out passes as it is, so that a smaller batch can be tried, and our own sentences do.
    """
    try:
        yield
    except (AuditError, KeyboardInterrupt, Terminated, GeneratorExit):
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise
        shape = " x ".join(map(str, images.shape[1:]))
        said, kind = first_line(error), type(error).__name__
        what = kind if said == kind else f"{kind}: {said.rstrip('.')}"
        raise ModelFault(
            name,
            f"Classifier '{name}' cannot take images of {shape} (channels, height, width), here {len(images)} in a "
            f"batch: {what}.",
        ) from error
