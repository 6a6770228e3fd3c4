"""Which options a class may hand to mkfs and to mount, by allow-list; it knows no tool and mounts nothing.

What names a path, a device or an identity, what gives up a journal, a barrier or a checksum, and what lets a
broken filesystem stop the machine is on no list. So is what a list does not need: an option is added when
somebody has a use for it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from csi_driver.linux.mount import MountFlag

FLAG_BYTES_MAXIMUM: Final = 128
MKFS_TEXT_BYTES_MAXIMUM: Final = 1024


class Rule(Protocol):
    """Which values an option may have; its text is for people."""

    def admits(self, value: str | None) -> bool:
        """Say whether the value, None where there is no `=`, is allowed."""


@dataclass(frozen=True, slots=True)
class Bare:
    """An option that is its name alone."""

    def admits(self, value: str | None) -> bool:
        """Say whether there is no value."""
        return value is None

    def __str__(self) -> str:
        return "no value"


@dataclass(frozen=True, slots=True)
class Number:
    """A decimal number within bounds, a power of two if so asked, without leading zeros."""

    minimum: int
    maximum: int
    power_of_two: bool = False

    def admits(self, value: str | None) -> bool:
        """Say whether the value is such a number."""
        if value is None or not re.fullmatch(r"0|[1-9][0-9]{0,18}", value, re.ASCII):
            return False
        number = int(value)
        return self.minimum <= number <= self.maximum and not (self.power_of_two and number & (number - 1))

    def __str__(self) -> str:
        return f"{'power of two, ' if self.power_of_two else ''}{self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes within bounds, with or without one of the suffixes k, m, g."""

    minimum: int
    maximum: int
    power_of_two: bool = False

    def admits(self, value: str | None) -> bool:
        """Say whether the value is such a size."""
        match = re.fullmatch(r"([1-9][0-9]{0,18})([kmgKMG]?)", value or "", re.ASCII)
        if not match:
            return False
        number = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
        return self.minimum <= number <= self.maximum and not (self.power_of_two and number & (number - 1))

    def __str__(self) -> str:
        return f"{'power of two, ' if self.power_of_two else ''}{self.minimum} to {self.maximum} bytes"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words; `bare` allows the option without a value as well."""

    words: tuple[str, ...]
    bare: bool = False

    def admits(self, value: str | None) -> bool:
        """Say whether the value is one of the words."""
        return self.bare if value is None else value in self.words

    def __str__(self) -> str:
        return f"{'no value or ' if self.bare else ''}{', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Text:
    """Whatever matches a pattern, which is described for people."""

    pattern: str
    meaning: str
    bare: bool = False

    def admits(self, value: str | None) -> bool:
        """Say whether the whole value matches."""
        return self.bare if value is None else re.fullmatch(self.pattern, value, re.ASCII) is not None

    def __str__(self) -> str:
        return self.meaning


@dataclass(frozen=True, slots=True)
class Suboptions:
    """A comma-separated list, each of `key` or `key=value`, each key with its own rule and once at most."""

    rules: Mapping[str, Rule]

    def admits(self, value: str | None) -> bool:
        """Say whether every part is allowed."""
        parts = [part.partition("=") for part in (value or "").split(",")]
        keys = [key for key, _, _ in parts]
        return len(keys) == len(set(keys)) and all(
            key in self.rules and self.rules[key].admits(text if equals else None) for key, equals, text in parts
        )

    def __str__(self) -> str:
        return "any of " + ", ".join(f"{key} ({rule})" for key, rule in self.rules.items())


BARE: Final = Bare()
SWITCH: Final = Choice(("0", "1"))


def _bare(*names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, BARE)


def _label(length: int) -> Rule:
    return Text(rf"[A-Za-z0-9_.][A-Za-z0-9_.-]{{0,{length - 1}}}", f"at most {length} letters, digits, _ . -")


STRIPE: Final = Number(1, 65536)

# What each mkfs takes beside what we always give it. A key is the option, its rule judges the next word.
# ext4 -E: nothing that moves the filesystem (offset), lets others write to it (mmp) or repeats our own.
# ext4 -O: the journal, checksums and 64bit are not up to a class; stable_inodes forbids a clone's new UUID.
# xfs -d, -l: no name, file, logdev, size; crc=0 and lazy-count=0 are on no list.
MKFS_OPTIONS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "ext4": {
        "-i": Number(4096, 67108864),
        "-I": Choice(("256", "512", "1024", "2048", "4096")),
        "-m": Number(0, 50),
        "-N": Number(16, 4294967295),
        "-L": _label(16),
        "-T": Choice(("default", "small", "big", "huge", "news", "largefile", "largefile4")),
        "-J": Suboptions({"size": Number(4, 10240)}),
        "-O": Suboptions(
            _bare("^resize_inode", "sparse_super2", "large_dir", "inline_data", "ea_inode", "encrypt", "verity")
            | _bare("quota", "project", "orphan_file", "^orphan_file", "fast_commit", "^fast_commit", "dir_index")
        ),
        "-E": Suboptions(
            {
                "stride": STRIPE,
                "stripe_width": STRIPE,
                "packed_meta_blocks": SWITCH,
                "num_backup_sb": Number(0, 2),
                "root_owner": Text(r"[0-9]{1,9}:[0-9]{1,9}", "UID:GID"),
            }
        ),
    },
    "xfs": {
        "-i": Suboptions(
            {
                "size": Choice(("512", "1024", "2048")),
                "maxpct": Number(0, 100),
                "sparse": SWITCH,
                "nrext64": SWITCH,
            }
        ),
        "-m": Suboptions(dict.fromkeys(("reflink", "rmapbt", "finobt", "bigtime", "inobtcount"), SWITCH)),
        "-d": Suboptions(
            {
                "agcount": Number(1, 65536),
                "su": Size(4096, 1 << 30),
                "sw": STRIPE,
                "noalign": BARE,
                "cowextsize": Number(0, 1 << 20),
                "extszinherit": Number(0, 1 << 20),
            }
        ),
        "-l": Suboptions({"size": Size(64 << 20, 2040 << 20), "su": Size(4096, 256 << 10)}),
        "-n": Suboptions({"size": Size(4096, 65536, power_of_two=True)}),
        "-L": _label(12),
    },
    "btrfs": {
        "-d": Choice(("single", "dup")),
        "--data": Choice(("single", "dup")),
        "-m": Choice(("single", "dup")),
        "--metadata": Choice(("single", "dup")),
        "--csum": Choice(("crc32c", "xxhash", "sha256", "blake2")),
        "--checksum": Choice(("crc32c", "xxhash", "sha256", "blake2")),
        "-n": Size(4096, 65536, power_of_two=True),
        "--nodesize": Size(4096, 65536, power_of_two=True),
        "-L": _label(64),
        "--label": _label(64),
        "-O": Suboptions(_bare("no-holes")),
        "--features": Suboptions(_bare("no-holes")),
        "-R": Suboptions(_bare("free-space-tree", "quota")),
        "--runtime-features": Suboptions(_bare("free-space-tree", "quota")),
    },
}

# Generic attributes: of one mount, so that they hold for directory volumes and for a bind as well.
# None: allowed, and what a mount is without any flag.
ATTRIBUTES: Final[Mapping[str, MountFlag | None]] = {
    "ro": MountFlag.READ_ONLY,
    "rw": None,
    "noexec": MountFlag.NO_EXEC,
    "exec": None,
    "nosuid": MountFlag.NO_SUID,
    "suid": None,
    "nodev": MountFlag.NO_DEV,
    "dev": None,
    "noatime": MountFlag.NO_ATIME,
    "strictatime": MountFlag.STRICT_ATIME,
    "relatime": None,
    "nodiratime": MountFlag.NO_DIRATIME,
    "diratime": None,
    "nosymfollow": MountFlag.NO_SYMLINK_FOLLOW,
    "symfollow": None,
    "defaults": None,
}
# Workloads choose the content of their volumes: a device node or a set-user-id file there must be dead unless
# the class says otherwise.
DEFAULT_ATTRIBUTES: Final = {"nosuid": "suid", "nodev": "dev"}

_SUPERBLOCK: Final = _bare("lazytime", "nolazytime", "sync", "dirsync")

# Documentation/admin-guide/ext4.rst, xfs.rst and the btrfs manual. errors=panic and fatal_errors=bug would
# let a workload's filesystem stop the machine; norecovery, nobarrier, data=writeback and degraded show or
# make torn data.
MOUNT_OPTIONS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "ext4": {
        **_SUPERBLOCK,
        **_bare("discard", "nodiscard", "delalloc", "nodelalloc", "auto_da_alloc", "noauto_da_alloc"),
        **_bare("dioread_lock", "dioread_nolock", "noinit_itable", "block_validity", "noblock_validity"),
        "barrier": Choice(("1",), bare=True),
        "data": Choice(("ordered", "journal")),
        "commit": Number(1, 300),
        "errors": Choice(("remount-ro", "continue")),
        "init_itable": Number(1, 1000),
        "inode_readahead_blks": Number(1, 4096, power_of_two=True),
        "journal_ioprio": Number(0, 7),
        "max_batch_time": Number(0, 1000000),
        "min_batch_time": Number(0, 1000000),
        "max_dir_size_kb": Number(1, 1 << 30),
        "stripe": Number(0, 65536),
    },
    "xfs": {
        **_SUPERBLOCK,
        **_bare("inode32", "inode64", "largeio", "nolargeio", "discard", "nodiscard", "noquota", "noalign"),
        **_bare("swalloc", "wsync", "filestreams"),
        "allocsize": Size(64 << 10, 1 << 30, power_of_two=True),
        "logbufs": Number(2, 8),
        "logbsize": Size(16 << 10, 256 << 10, power_of_two=True),
    },
    "btrfs": {
        **_SUPERBLOCK,
        **_bare("ssd", "nossd", "ssd_spread", "nossd_spread", "nodiscard", "autodefrag", "noautodefrag"),
        **_bare("barrier", "treelog", "notreelog", "flushoncommit", "noflushoncommit", "skip_balance"),
        "discard": Choice(("async", "sync"), bare=True),
        "compress": Text(r"no|none|lzo|zlib(:[1-9])?|zstd(:([1-9]|1[0-5]))?", "no, lzo, zlib[:1-9], zstd[:1-15]", True),
        "compress-force": Text(r"lzo|zlib(:[1-9])?|zstd(:([1-9]|1[0-5]))?", "lzo, zlib[:1-9], zstd[:1-15]", True),
        "commit": Number(1, 300),
        "max_inline": Number(0, 16384),
        "space_cache": Choice(("v2",)),
        "thread_pool": Number(1, 64),
    },
}

# Names that decide one thing between them; of all others, `x` and `nox` do.
_DECIDES: Final = {
    "ro": "ro or rw",
    "rw": "ro or rw",
    "noatime": "access times",
    "relatime": "access times",
    "strictatime": "access times",
    "inode32": "inode numbers",
    "inode64": "inode numbers",
    "compress": "compression",
    "compress-force": "compression",
    "dioread_lock": "direct reads",
    "dioread_nolock": "direct reads",
}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Mount flags that were checked: attributes of each mount, and options of the filesystem for fsconfig(2).

    `attributes` are the names that restrict (`ro`, `noexec`, `nosuid`, `nodev`, `noatime`, `strictatime`,
    `nodiratime`, `nosymfollow`); what only confirms the kernel's default (`rw`, `exec`, `suid`, …) is not
    among them.
    """

    attributes: frozenset[str]
    options: tuple[str, ...]

    @property
    def flags(self) -> MountFlag:
        """The attributes as `mount.bind` and `mount.mount_filesystem` take them."""
        flags = MountFlag(0)
        for name in self.attributes:
            flags |= ATTRIBUTES[name] or MountFlag(0)
        return flags


def parse_mkfs_options(filesystem: str, text: str) -> tuple[str, ...]:
    """Split and check a class's mkfs options; the words come back in order, fit for an argument list.

    An option and its value are separate words or, for long options, joined by `=`. An empty text is no
    options.

    Raises:
        ValueError: naming the option that is not allowed, given twice or wrong in its value, and what is
            allowed.
    """
    rules = MKFS_OPTIONS[filesystem]
    seen: set[str] = set()
    words: list[str] = []
    for name, value in _mkfs_pairs(filesystem, text):
        rule = rules.get(name)
        if rule is None:
            allowed = ", ".join(rules)
            raise ValueError(f"mkfs option {name!r} is not allowed for {filesystem}; allowed are {allowed}")
        if name in seen:
            raise ValueError(f"mkfs option {name!r} is given twice")
        if not rule.admits(value):
            raise ValueError(f"mkfs option {name!r} of {filesystem} cannot be {value!r}; allowed is {rule}")
        seen.add(name)
        words += [name, value or ""]
    return tuple(words)


def _mkfs_pairs(filesystem: str, text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each option with the word that is its value."""
    if len(text.encode()) > MKFS_TEXT_BYTES_MAXIMUM:
        raise ValueError(f"mkfs options of more than {MKFS_TEXT_BYTES_MAXIMUM} bytes")
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"mkfs options {text!r} cannot be split into words: {error}") from None
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.startswith("--"):
            yield name, value
        else:
            yield word, next(words, None)


def is_known_flag(name: str) -> bool:
    """Whether some filesystem allows a mount flag of this name."""
    return name in ATTRIBUTES or any(name in rules for rules in MOUNT_OPTIONS.values())


def flag_names(flags: Sequence[str]) -> str:
    """The flags for a message: up to the first `=`, since a value may be confidential."""
    return " ".join(flag.partition("=")[0] for flag in flags)


def check_mount_options(filesystem: str | None, flags: Sequence[str]) -> MountOptions:
    """Check a capability's mount flags against the filesystem's allow-list; None is a directory volume.

    A flag may itself be a list with commas. `nosuid` and `nodev` are added unless the flags say `suid` or
    `dev`. Saying the same twice is harmless.

    Raises:
        ValueError: naming the flag that is not allowed, too long or contradicts another, and what is allowed.
            The value of an unknown flag is left out: it may be confidential.
    """
    names: dict[str, None] = {}
    for flag in flags:
        if len(flag.encode(errors="surrogatepass")) > FLAG_BYTES_MAXIMUM:
            raise ValueError(f"mount flag {flag_names([flag])[:16]!r}… is longer than {FLAG_BYTES_MAXIMUM} bytes")
        for part in flag.split(","):
            _check_flag(filesystem, part)
            names[part] = None
    _refuse_contradictions(names)
    for restricted, lifted in DEFAULT_ATTRIBUTES.items():
        if lifted not in names:
            names[restricted] = None
    return MountOptions(
        attributes=frozenset(name for name in names if ATTRIBUTES.get(name)),
        options=tuple(name for name in names if name not in ATTRIBUTES),
    )


def _check_flag(filesystem: str | None, flag: str) -> None:
    """Raise ValueError unless the flag is on the list."""
    if flag in ATTRIBUTES:
        return
    rules = MOUNT_OPTIONS[filesystem] if filesystem else {}
    name, equals, value = flag.partition("=")
    rule = rules.get(name)
    if rule is None:
        allowed = ", ".join([*ATTRIBUTES, *rules])
        kind = filesystem or "directory volumes"
        raise ValueError(f"mount flag {name!r} is not allowed for {kind}; allowed are {allowed}")
    if not rule.admits(value if equals else None):
        raise ValueError(f"mount flag {flag!r}: {name} allows {rule}")


def _refuse_contradictions(flags: Mapping[str, None]) -> None:
    """Raise ValueError when two flags decide the same thing differently."""
    decided: dict[str, str] = {}
    for flag in flags:
        name = flag.partition("=")[0]
        subject = _DECIDES.get(name, name.removeprefix("no"))
        if (other := decided.setdefault(subject, flag)) != flag:
            raise ValueError(f"mount flags {other!r} and {flag!r} contradict each other")
