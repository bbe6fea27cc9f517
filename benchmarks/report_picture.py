"""The README's picture: verdict, ranking and one query image of a report, by headless Chromium.

python benchmarks/report_picture.py spruce-audit-demo/report.html test-00709 docs/pictures/report.png
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, TALLEST, MARGIN = 1240, 2400, 12
SHOWN = """<style>
header > :not(h1, .verdict), footer, details, button,
main > section:not(#ranking, #images), #ranking > :not(h2, :nth-child(2)),
#images > :not(.queries), article.query:not([aria-label$="{query}"]) {{ display: none !important }}
section, header, article {{ margin: 0 0 1rem !important; padding: 0 !important; border: none !important }}
</style></head>"""


def picture(report: Path, query: str, out: Path) -> None:
    """Write a PNG of 256 colours that shows the parts of `report` that SHOWN leaves, without the empty rest."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed.")
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "report.html", Path(folder) / "shot.png"
        page.write_text(report.read_text(encoding="utf-8").replace("</head>", SHOWN.format(query=query), 1), "utf-8")
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={WIDTH},{TALLEST}",
        )
        subprocess.run((chromium, *options, f"--screenshot={shot}", page.as_uri()), check=True, capture_output=True)
        image = Image.open(shot).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    left, top, right, bottom = ImageChops.difference(image, empty).getbbox()
    shown = image.crop((left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN))
    shown.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
