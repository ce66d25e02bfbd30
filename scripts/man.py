#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Manual pages out of those of Documentation/, by docutils. Argument: the folder for them."""

import pathlib
import re
import sys

from docutils.core import publish_string

DOCUMENTATION = pathlib.Path(__file__).resolve().parent.parent / "Documentation"
# Where each page is found when it is installed: most as a manual page, NAME(SECTION).
PAGES = {
    "balloonctl": "balloonctl(1)",
    "qosctl": "qosctl(1)",
    "dm-qos": "dm-qos(4)",
    "mpath-sel": "dm-round-robin-rs(4)",
    "balloon": "virtio_balloon_rs(4)",
    "production": "ferrule(7)",
    "packages": "/usr/share/doc/ferrule-dkms/packages.rst",
    "kernels": "Documentation/kernels.rst in the source",
}
# Sections for those who change the code.
LEFT_OUT = re.compile(
    r"^(?:Tests|Beside the C driver)\n([=~-])\1+\n.*?(?=^[^\n=]+\n\1{3,}\n|\Z)", re.M | re.S
)
# And pictures.
IMAGE = re.compile(r"^\.\. image::.*\n(?: +.*\n)*\n", re.M)
INSTALLED = re.compile(r"([\w-]+)\((\d)\)")
MANUALS = {"1": "User Commands", "4": "Kernel Interfaces", "7": "Miscellanea"}
TITLE = re.compile(r"^=+\n(.+)\n=+\n", re.M)
# `text <page.rst>`_
LINK = re.compile(r"`([^`<]*?)\s*<([\w-]+)\.rst>`_+")


def manual(text: str, name: str, section: str) -> str:
    """The same text, with the head that docutils wants for a manual page, and links to others."""
    title = TITLE.search(text)
    if not title:
        raise ValueError("the page has no title")
    described = title[1].partition(": ")[2] or f"Ferrule {title[1].lower()}"
    head = f"{'=' * len(name)}\n{name}\n{'=' * len(name)}\n\n"
    head += f"{'-' * len(described)}\n{described}\n{'-' * len(described)}\n\n"
    head += f":Manual section: {section}\n:Manual group: {MANUALS[section]}\n\n"
    head += "Description\n===========\n\n"
    text = LINK.sub(lambda link: f"{link[1]} ({PAGES[link[2]]})", text[title.end() :])
    text = IMAGE.sub("", LEFT_OUT.sub("", text))
    text = text.replace("scripts/balloonctl", "balloonctl").replace("scripts/qosctl", "qosctl")
    return head + re.sub(r"(?<![\w/-])([\w-]+)\.rst\b", lambda m: PAGES.get(m[1], m[0]), text)


def main() -> int:
    """The command line."""
    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    settings = {"halt_level": 2, "output_encoding": "utf-8"}
    for page, where in PAGES.items():
        if not (installed := INSTALLED.fullmatch(where)):
            continue
        name, section = installed.groups()
        path = DOCUMENTATION / f"{page}.rst"
        source = manual(path.read_text(encoding="utf-8"), name, section)
        made = publish_string(source, str(path), writer_name="manpage", settings_overrides=settings)
        # Narrow columns cannot be adjusted to both sides.
        made = re.sub(rb"^(\.TH .*)$", rb"\1\n.ad l", made, count=1, flags=re.M)
        (target / f"{name}.{section}").write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
