"""Division of a batch among the threads of a CPU, for work in which images do not influence one another.

The maps of a small network are too small to be divided well among threads: every operation waits for its slowest part.
If each thread works on images of its own, none waits for another. A GPU takes the whole batch.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

Result = TypeVar("Result")
Step = Callable[[], None]

SMALLEST_SHARE = 16
"""Images below which a share no longer fills a core: 16 images in two shares take as long as in one, 32 do not."""


class _BrokenOff(Exception):
    """Raised in the other shares once one of them, or the user, has broken off."""


def share_count(images: int, threads: int) -> int:
    """Into how many shares `images` are divided for so many threads."""
    return max(1, min(threads, images // SMALLEST_SHARE))


def in_shares(images: int, device: torch.device, work: Callable[[slice, Step], Result], on_step: Step) -> list[Result]:
    """Call `work` with the rows of every share of `images`, on a CPU at the same time; returns the results in order.

    `work` calls what it is given after every step; `on_step` is told those of the first share. An error in a share is
    raised here, as is an interruption; the other shares then end at their next step.
    """
    threads = torch.get_num_threads()
    count = share_count(images, threads) if device.type == "cpu" else 1
    if count == 1:
        return [work(slice(0, images), on_step)]
    bounds = [images * i // count for i in range(count + 1)]
    broken_off = Event()

    def share(i: int) -> Result:
        def step() -> None:
            if broken_off.is_set():
                raise _BrokenOff
            if i == 0:
                on_step()

        return work(slice(bounds[i], bounds[i + 1]), step)

    try:
        # The number of threads is that of the thread which sets it, and of those that have none yet.
        with ThreadPoolExecutor(count, "share", torch.set_num_threads, (threads // count,)) as pool:
            futures = [pool.submit(share, i) for i in range(count)]
            try:
                for ended in wait(futures, return_when=FIRST_EXCEPTION).done:
                    ended.result()
            except BaseException:
                broken_off.set()
                raise
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)
