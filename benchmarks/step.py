"""What a step of the search costs, and what keeping freed memory and sums of weights saves of it.

    python benchmarks/step.py [--n 32] [--repeats 5]

Draws images by the shipped generator with weights of their own, as after pivotal tuning, and finds the way back to the
codes. Every form runs in processes of its own, in turn; processor time, medians over the processes of the least of 15
steps. That all forms come to the same gradient is checked, to the bit.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time

from audit.runtime.allocator import keep_freed_memory

FORMS = ("as it was", "memory kept", "memory and sums kept")


def step_of(n: int, form: str) -> tuple[float, str]:
    """Return the least seconds of a step with `n` images, and the hash of its gradient."""
    if form != FORMS[0]:
        keep_freed_memory()  # before torch is imported
    import torch

    from audit.generator.files.load import load_generator
    from audit.generator.held import Held

    generator, rng = load_generator("shipped:phantom").generator, torch.Generator().manual_seed(0)
    codes = generator.random_codes(n, rng)[:, None].repeat(1, generator.num_ws, 1)
    deltas = {name: 0.01 * torch.randn(n, *shape, generator=rng) for name, shape in generator.tunable.items()}
    given = Held(deltas) if form == FORMS[2] else deltas
    seconds = []
    for _ in range(16):
        began = time.process_time()
        leaf = codes.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(generator.images(leaf, given).abs().sum(), leaf)
        seconds.append(time.process_time() - began)
    return min(seconds[1:]), hashlib.sha256(gradient.numpy().tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32, help="images that are searched for together")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each form")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.form is not None:
        print(json.dumps(step_of(given.n, given.form)))
        return
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    gradients = set()
    for _ in range(given.repeats):
        for form in FORMS:
            asked = [sys.executable, __file__, "--n", str(given.n), "--form", form]
            seconds, gradient = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
            found[form].append(seconds)
            gradients.add(gradient)
    assert len(gradients) == 1, "the forms do not come to the same gradient"
    for form, times in found.items():
        each = " ".join(f"{1000 * one:.0f}" for one in times)
        print(f"{form:<22} {1000 * statistics.median(times):.0f} ms ({each})")


if __name__ == "__main__":
    main()
