#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Load a file system with random changes, and check that it has what it should.

    files.py load DIRECTORY SEED CHANGES MODEL
    files.py rounds DIRECTORY SEED ROUNDS CHANGES MODEL COMMAND...
    files.py check DIRECTORY MODEL

What DIRECTORY should have is kept in the file MODEL. "rounds" ends each round by an fsync of a new
file, and then of all; after each it runs COMMAND with a name, and keeps what is sure to be on the
disk now in MODEL.NAME: fsync-N and all-N.
"""

import hashlib
import json
import os
import random
import sys

MAX_SIZE = 1 << 16


class Tree:
    """A directory, and what it should have."""

    def __init__(self, root: str, seed: int):
        self.root = root
        self.random = random.Random(seed)
        self.files: dict[str, bytearray] = {}
        self.directories = [""]
        self.count = 0
        os.makedirs(root, exist_ok=True)

    def path(self, name: str) -> str:
        """Of a file."""
        return os.path.join(self.root, name)

    def new_name(self) -> str:
        """One that is not used yet."""
        self.count += 1
        return os.path.join(self.random.choice(self.directories), str(self.count))

    def data(self) -> bytes:
        """Something to write."""
        return self.random.randbytes(self.random.randrange(1, MAX_SIZE))

    def create(self, _name: str = "") -> str:
        """A new file."""
        name = self.new_name()
        self.files[name] = bytearray()
        open(self.path(name), "wb").close()
        self.write(name)
        return name

    def write(self, name: str) -> None:
        """Somewhere in a file, or beyond its end."""
        data, content = self.data(), self.files[name]
        offset = self.random.randrange(len(content) + 4096)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        with open(self.path(name), "r+b") as file:
            file.seek(offset)
            file.write(data)

    def truncate(self, name: str) -> None:
        """Or extend."""
        size, content = self.random.randrange(MAX_SIZE), self.files[name]
        del content[size:]
        content.extend(bytes(size - len(content)))
        os.truncate(self.path(name), size)

    def rename(self, name: str) -> None:
        """To a new name, or over another file."""
        new = self.random.choice([*self.files, self.new_name()])
        os.rename(self.path(name), self.path(new))
        self.files[new] = self.files.pop(name)

    def unlink(self, name: str) -> None:
        """A file is gone."""
        os.unlink(self.path(name))
        del self.files[name]

    def mkdir(self, _name: str) -> None:
        """A new directory."""
        name = self.new_name()
        os.mkdir(self.path(name))
        self.directories.append(name)

    def fsync(self, name: str) -> None:
        """Of a file, and of the directory, so that it has its name."""
        for path in (self.path(name), os.path.dirname(self.path(name))):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def read(self, name: str) -> None:
        """Is it what was written?"""
        with open(self.path(name), "rb") as file:
            if file.read() != self.files[name]:
                sys.exit(f"{name} has changed")

    def change(self, times: int) -> None:
        """At random."""
        kinds = [self.create, self.write, self.truncate, self.rename]
        kinds += [self.unlink, self.mkdir, self.fsync, self.read]
        weights = [6, 6, 2, 3, 3, 1, 1, 2]
        for _ in range(times):
            if len(self.files) < 3:
                self.create()
            else:
                self.random.choices(kinds, weights)[0](self.random.choice(list(self.files)))

    def save(self, path: str, only: list[str] | None = None) -> None:
        """What should be there: of these files, or all there is."""
        files = {
            name: hashlib.sha256(self.files[name]).hexdigest()
            for name in (self.files if only is None else only)
        }
        with open(path, "w", encoding="ascii") as file:
            json.dump({"files": files, "whole": only is None}, file)


def run(command: list[str]) -> None:
    """It has to succeed."""
    status = os.spawnvp(os.P_WAIT, command[0], command)
    if status:
        sys.exit(f"{command}: status {status}")


def rounds(tree: Tree, number: int, changes: int, model: str, command: list[str]) -> None:
    """See above."""
    for i in range(number):
        tree.change(changes)
        name = tree.create()
        tree.fsync(name)
        tree.save(f"{model}.fsync-{i}", [name])
        run([*command, f"fsync-{i}"])
        os.sync()
        tree.save(f"{model}.all-{i}")
        run([*command, f"all-{i}"])
    tree.save(model)


def differences(root: str, model: str) -> list[str]:
    """What is missing, changed, or too much."""
    with open(model, encoding="ascii") as file:
        expected = json.load(file)
    there = {}
    for directory, _, files in os.walk(root):
        for name in files:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            there[os.path.relpath(path, root)] = digest
    wrong = [name for name, digest in expected["files"].items() if there.get(name) != digest]
    if expected["whole"]:
        wrong += [name for name in there if name not in expected["files"]]
    return wrong if expected["files"] else ["nothing is expected"]


def main() -> None:
    """The command line."""
    command, root, *rest = sys.argv[1:]
    if command == "check":
        wrong = differences(root, rest[0])
        sys.exit(f"missing, changed or too much: {wrong}" if wrong else 0)
    tree = Tree(root, int(rest[0]))
    if command == "load":
        tree.change(int(rest[1]))
        tree.save(rest[2])
    else:
        rounds(tree, int(rest[1]), int(rest[2]), rest[3], rest[4:])


if __name__ == "__main__":
    main()
