"""How long a browser takes to open the report of a large audit: `python benchmarks/report_opening.py 128 256`.

A made-up audit of 200 query images and 5 models, whose pictures have the noise of photographs, is rendered; each of its
files is opened five times in headless Chromium, by Playwright. Prints the size of every file and the median time to the
load event, from a fresh browser context each.
"""

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support_results import example_audit, write_audit  # noqa: E402 - the tests' made-up audit

from audit.report.build import render_files  # noqa: E402

MODELS = ("trades", "trades-small", "plain", "shortcut", "again")
QUERIES, TIMES = 200, 5
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def add_noise(folder: Path) -> None:
    """Give the pictures the noise of photographs: smooth ones would be smaller than real ones are."""
    rng = np.random.default_rng(0)
    for file in folder.rglob("*.png"):
        pixels = np.asarray(Image.open(file))
        if len(np.unique(pixels)) > 2:  # no mask
            noise = rng.normal(0, 1 if file.stem.endswith("edit") else 4, pixels.shape)
            Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file)


def opening(browser: Any, file: Path) -> float:
    """Return the seconds from the request to the end of the load event."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri(), wait_until="load")
    page.wait_for_function(f"{LOADED} > 0")
    seconds = page.evaluate(LOADED) / 1000
    context.close()
    return float(seconds)


def main(sides: list[int]) -> None:
    for side in sides:
        with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
            folder = Path(place)
            results = write_audit(folder, example_audit(folder, MODELS, n_queries=QUERIES, size=side))
            add_noise(folder)
            files = render_files(results)
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for file in files:
                times = [opening(browser, file) for _ in range(TIMES)]
                size, load = file.stat().st_size / 1e6, os.getloadavg()[0]
                told = f"median {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
                print(f"{side} px, {file.name}: {size:.1f} MB, {told}, load of the machine {load:.1f}", flush=True)
            browser.close()


if __name__ == "__main__":
    main([int(side) for side in sys.argv[1:]] or [128, 256])
