"""Render the glyphs of the mini world once into `tga/mini/assets/glyphs.png` and `glyphs.json`.

Needs the Noto Color Emoji font (Debian: `apt-get install fonts-noto-color-emoji`); the package itself does not, since
the atlas ships with it under the font's licence (SIL OFL 1.1).

    python -m tools.make_glyph_atlas [--font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf] [--out tga/mini/assets]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tga.mini.lexicon import PICTURED

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109  # the only size, in pixels, of the font's colour bitmaps
CELL = 64  # side of one atlas cell, in pixels
COLUMNS = 8


def render(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph, cropped to its ink and centred in a transparent RGBA cell of CELL x CELL pixels."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"the font has no glyph for U+{ord(glyph):04X} {unicodedata.name(glyph)}")
    ink = canvas.crop(box)
    ink.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(ink, ((CELL - ink.width) // 2, (CELL - ink.height) // 2))
    return cell


def main() -> None:
    """Render every glyph of the lexicon into the atlas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--out", type=Path, default=Path("tga/mini/assets"))
    arguments = parser.parse_args()
    if not arguments.font.is_file():
        raise SystemExit(f"no font at {arguments.font}: install fonts-noto-color-emoji, or name one with --font")
    font = ImageFont.truetype(str(arguments.font), BITMAP_SIZE)
    rows = -(-len(PICTURED) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    cells = {}
    for number, thing in enumerate(PICTURED):
        assert thing.glyph is not None
        place = ((number % COLUMNS) * CELL, (number // COLUMNS) * CELL)
        atlas.paste(render(thing.glyph, font), place)
        cells[thing.name] = {
            "codepoint": f"U+{ord(thing.glyph):04X}",
            "unicode_name": unicodedata.name(thing.glyph),
            "x": place[0],
            "y": place[1],
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    atlas.save(arguments.out / "glyphs.png", optimize=True)
    about = {
        "cell": CELL,
        "font": arguments.font.name,
        "font_sha256": hashlib.sha256(arguments.font.read_bytes()).hexdigest(),
        "font_licence": "SIL Open Font License 1.1 (see OFL.txt)",
        "font_origin": "Noto Color Emoji, https://github.com/googlefonts/noto-emoji (Debian: fonts-noto-color-emoji)",
        "glyphs": cells,
    }
    (arguments.out / "glyphs.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{len(cells)} glyphs -> {arguments.out / 'glyphs.png'}")


if __name__ == "__main__":
    main()
