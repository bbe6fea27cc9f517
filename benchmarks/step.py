"""What a step of the search costs, and what is saved of it by keeping memory and sums, and by fewer gradients.

    python benchmarks/step.py [--n 32] [--repeats 5]

Draws images by the shipped generator with weights of their own, as after pivotal tuning, and finds the way back to the
codes. Every form runs in processes of its own, in turn; processor time, medians over the processes of the least of 15
steps. The last form leaves out the gradients of the weights, which a search does not need. That all forms come to the
same gradient is checked: to the bit, and in the last form, which rounds otherwise, to 1e-5 of its length.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from audit.runtime.allocator import keep_freed_memory

FORMS = ("as it was", "memory kept", "memory and sums kept", "and no gradients of weights")


def step_of(n: int, form: str, out: Path) -> float:
    """Return the least seconds of a step with `n` images, and leave its gradient in `out`."""
    if form != FORMS[0]:
        keep_freed_memory()  # before torch is imported
    import torch

    from audit.generator.files.load import load_generator
    from audit.generator.held import Held

    generator, rng = load_generator("shipped:phantom").generator, torch.Generator().manual_seed(0)
    codes = generator.random_codes(n, rng)[:, None].repeat(1, generator.num_ws, 1)
    deltas = {name: 0.01 * torch.randn(n, *shape, generator=rng) for name, shape in generator.tunable.items()}
    if form != FORMS[3]:
        deltas = {name: value.requires_grad_() for name, value in deltas.items()}
    given = Held(deltas) if form in FORMS[2:] else deltas
    seconds = []
    for _ in range(16):
        began = time.process_time()
        leaf = codes.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(generator.images(leaf, given).abs().sum(), leaf)
        seconds.append(time.process_time() - began)
    torch.save(gradient, out)
    return min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32, help="images that are searched for together")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each form")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.form is not None:
        print(json.dumps(step_of(given.n, given.form, given.out)))
        return
    import torch

    found: dict[str, list[float]] = {form: [] for form in FORMS}
    with TemporaryDirectory() as folder:
        files = {form: Path(folder) / str(place) for place, form in enumerate(FORMS)}
        for _ in range(given.repeats):
            for form, file in files.items():
                asked = [sys.executable, __file__, "--n", str(given.n), "--form", form, "--out", str(file)]
                said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
                found[form].append(json.loads(said))
        first, *others = (torch.load(file, weights_only=True) for file in files.values())
    assert all(torch.equal(first, other) for other in others[:-1]), "the forms do not come to the same gradient"
    assert (first - others[-1]).norm() < 1e-5 * first.norm(), "gradients without those of the weights are others"
    for form, times in found.items():
        each = " ".join(f"{1000 * one:.0f}" for one in times)
        print(f"{form:<28} {1000 * statistics.median(times):.0f} ms ({each})")


if __name__ == "__main__":
    main()
