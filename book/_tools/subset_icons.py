"""Cut the theme's icon fonts down to the icons that the book uses (380 kB become 8 kB).

Run again when tests/book/test_site.py names an icon that is missing: add it to NAMES first.
Reads the fonts that pydata-sphinx-theme installs, writes book/_extra/vendor/fontawesome/.
"""

import re
import shutil
from pathlib import Path

import pydata_sphinx_theme
from fontTools import subset
from fontTools.ttLib import TTFont

NAMES = """\
angle-left angle-right arrow-up bars chevron-down circle-half-stroke code download expand file file-pdf github
lightbulb list magnifying-glass moon pencil-alt play rocket search sun xmark
"""

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
SOURCE = next((THEME / "vendor" / "fontawesome").iterdir())
TARGET = Path(__file__).resolve().parents[1] / "_extra" / "vendor" / "fontawesome"

HEAD = """\
/* Font Awesome Free 6.5.2 by @fontawesome, https://fontawesome.com, icons CC BY 4.0, fonts SIL OFL 1.1, code MIT.
   Cut down by book/_tools/subset_icons.py; do not edit. */
:root { --fa-font-solid: normal 900 1em/1 "Font Awesome 6 Free"; --fa-font-regular: var(--fa-font-solid); \
--fa-font-brands: normal 400 1em/1 "Font Awesome 6 Brands"; }
@font-face { font-family: "Font Awesome 6 Free"; font-weight: 900; font-display: block; src: url(solid.woff) format("woff"); }
@font-face { font-family: "Font Awesome 5 Free"; font-weight: 900; font-display: block; src: url(solid.woff) format("woff"); }
@font-face { font-family: "Font Awesome 6 Brands"; font-weight: 400; font-display: block; src: url(brands.woff) format("woff"); }
.fa, .fas, .far, .fa-solid, .fa-regular { font: var(--fa-font-solid); }
.fab, .fa-brands { font: var(--fa-font-brands); }
.fa, .fas, .far, .fab, .fa-solid, .fa-regular, .fa-brands { display: inline-block; text-rendering: auto; \
-webkit-font-smoothing: antialiased; }
.fa-lg { font-size: 1.25em; line-height: 0.05em; vertical-align: -0.075em; }
.fa-fw { text-align: center; width: 1.25em; }
"""


def main() -> None:
    css = (SOURCE / "css" / "all.min.css").read_text(encoding="utf-8")
    points = {}
    for selectors, point in re.findall(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}', css):
        points |= {name: int(point, 16) for name in re.findall(r"\.fa-([\w-]+):before", selectors)}
    rules = "".join(f'.fa-{name}::before {{ content: "\\{points[name]:x}"; }}\n' for name in NAMES.split())

    # The theme's own CSS names code points directly: all private-use characters in it.
    own = (THEME / "styles" / "pydata-sphinx-theme.css").read_text(encoding="utf-8")
    wanted = {points[name] for name in NAMES.split()} | {ord(c) for c in own if 0xE000 <= ord(c) <= 0xF8FF}
    wanted |= {int(p, 16) for p in re.findall(r"\\(f[0-9a-f]{3})", own)} | {0xF107, 0xF303}

    TARGET.mkdir(parents=True, exist_ok=True)
    for name, file in (("solid", "fa-solid-900.ttf"), ("brands", "fa-brands-400.ttf")):
        font = TTFont(SOURCE / "webfonts" / file)
        cut = subset.Subsetter(subset.Options(flavor="woff", layout_features=[], notdef_outline=True))
        cut.populate(unicodes=wanted)
        cut.subset(font)
        font.flavor = "woff"
        font.save(TARGET / f"{name}.woff")
    (TARGET / "icons.css").write_text(HEAD + rules, encoding="utf-8")
    shutil.copyfile(SOURCE / "LICENSE.txt", TARGET / "LICENSE.txt")


if __name__ == "__main__":
    main()
