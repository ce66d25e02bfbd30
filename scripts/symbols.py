#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compare names of symbols with those that a kernel exports (its Module.symvers).

    symbols.py crate BUILD           the kernel crate built in BUILD has the kernel's names
    symbols.py modules BUILD KO...   whatever the modules import is there, under that name

The names of Rust's symbols have a hash of each crate in them, which depends on the compiler's
version, and on the crates below. Where only that differs, the message says so.
"""

import argparse
import pathlib
import re
import struct
import sys

# In v0 mangling: what tells crates of one name apart.
CRATE_HASH = re.compile(r"Cs[0-9A-Za-z]*_(?=\d)")
SHT_SYMTAB = 2
SHN_UNDEF = 0
STB_LOCAL, STB_WEAK = 0, 2
SHOWN = 5
# What modpost adds to a module, of which this may be the object before.
ADDED = {"__this_module"}


def exported(build: pathlib.Path) -> set[str]:
    """The kernel's own symbols and those of its modules."""
    lines = (build / "Module.symvers").read_text().splitlines()
    return {line.split("\t")[1] for line in lines}


def symbols_of(module: pathlib.Path) -> tuple[set[str], set[str]]:
    """What an object (ELF64, little endian) imports, and what it defines for others."""
    data = module.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{module} is no 64-bit little-endian object")
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + n * size) for n in range(count)]
    imported, defined = set(), set()
    for _, kind, _, _, start, length, link, _, _, entry in sections:
        if kind != SHT_SYMTAB:
            continue
        strings = sections[link][4]
        for at in range(start + entry, start + length, entry):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            begin = strings + name
            text = data[begin : data.index(b"\0", begin)].decode()
            if info >> 4 == STB_LOCAL:
                continue
            if section != SHN_UNDEF:
                defined.add(text)
            elif info >> 4 != STB_WEAK:
                imported.add(text)
    return imported, defined


def without_hashes(name: str) -> str:
    """The name, whichever compiler gave it."""
    return CRATE_HASH.sub("C", name)


def explain(missing: list[str], kernel: set[str]) -> None:
    """Say what is missing, and what is there instead."""
    alike = {without_hashes(name): name for name in kernel if name.startswith("_R")}
    for name in missing[:SHOWN]:
        other = alike.get(without_hashes(name))
        if other:
            print(f"  {name}\n    has another hash in the kernel: {other}", file=sys.stderr)
        else:
            print(f"  {name}\n    is not in the kernel", file=sys.stderr)
    if len(missing) > SHOWN:
        print(f"  and {len(missing) - SHOWN} more", file=sys.stderr)
    if any(without_hashes(name) in alike for name in missing):
        print(
            "  Hashes differ where the compiler or its flags are not those that built the kernel.",
            file=sys.stderr,
        )


def check_crate(build: pathlib.Path) -> int:
    """The names that rust/ exports: the kernel has all of them."""
    built = set()
    for header in sorted((build / "rust").glob("exports_*_generated.h")):
        built |= set(re.findall(r"EXPORT_SYMBOL_RUST_GPL\((\w+)\)", header.read_text()))
    kernel = exported(build)
    missing = sorted(built - kernel)
    rust = {name for name in kernel if name.startswith(("_R", "rust_helper_"))}
    if missing or not built:
        print(
            f"error: of {len(built)} symbols that rust/ exports, {len(missing)} are not exported by"
            " the kernel under that name:",
            file=sys.stderr,
        )
        explain(missing, kernel)
        return 1
    print(f"== all {len(built)} symbols of rust/ have the kernel's names", file=sys.stderr)
    if rust - built:
        print(f"== the kernel has {len(rust - built)} more, of modules", file=sys.stderr)
    return 0


def check_modules(build: pathlib.Path, modules: list[pathlib.Path]) -> int:
    """What the modules import, from the kernel or from each other."""
    kernel = exported(build)
    objects = {module: symbols_of(module) for module in modules if module.exists()}
    ours = set().union(*(defined for _, defined in objects.values()))
    status = 0
    for module, (imported, _) in objects.items():
        missing = sorted(imported - kernel - ours - ADDED)
        if missing:
            print(f"error: {module.name} would not load into this kernel:", file=sys.stderr)
            explain(missing, kernel)
            status = 1
    return status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("crate", "modules"))
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("modules", type=pathlib.Path, nargs="*")
    args = parser.parse_args()
    if args.what == "crate":
        return check_crate(args.build)
    return check_modules(args.build, args.modules)


if __name__ == "__main__":
    sys.exit(main())
