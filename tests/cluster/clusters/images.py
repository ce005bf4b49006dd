"""Building images from ordinary Dockerfiles without a registry, a daemon or traces."""

from __future__ import annotations

import configparser
import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusters.tools import run, search_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
INSIDE = Path("/var/cache/testbed")
"""Where a build sees what the machine lends it; the base image has this directory."""

# What says where packages come from and how to get there. Everything else that pip can be told (where to
# install, what to require) is the Dockerfile's business.
_PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "no-index",
    "find-links",
    "trusted-host",
    "cert",
    "client-cert",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
)


_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


def canonical(reference: str) -> str:
    """An image's full name, as containerd and the kubelet read it: `rollbook/registry` is on docker.io.

    buildah reads it as `localhost/rollbook/registry`, and the kubelet would look for another image.
    """
    first, slash, _ = reference.partition("/")
    if not slash:
        reference = f"docker.io/library/{reference}"
    elif "." not in first and ":" not in first and first != "localhost":
        reference = f"docker.io/{reference}"
    name = reference.rpartition("/")[2]
    return reference if ":" in name or "@" in name else f"{reference}:latest"


def pip_settings(environ: Mapping[str, str], files: Sequence[Path]) -> dict[str, str]:
    """How this machine's pip finds packages: its configuration files and, over them, `PIP_…` variables."""
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        parser.read(path)
        for section in ("global", "install"):
            if parser.has_section(section):
                items = {name.replace("_", "-"): value for name, value in parser.items(section)}
                settings |= {name: value for name, value in items.items() if name in _PIP_SETTINGS}
    for name in _PIP_SETTINGS:
        value = environ.get(f"PIP_{name.replace('-', '_').upper()}")
        if value:
            settings[name] = value
    return settings


def pip_files(environ: Mapping[str, str]) -> list[Path]:
    """Where pip keeps its configuration, the stronger later."""
    home = Path(environ.get("HOME", "/root"))
    configured = environ.get("PIP_CONFIG_FILE")
    if configured == os.devnull:
        return []
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    paths = [Path("/etc/pip.conf"), home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    return paths + ([Path(configured)] if configured else [])


def lend(settings: Mapping[str, str], cache: Path) -> tuple[str, list[tuple[Path, Path]]]:
    """pip's configuration for a build, and the (host, build) paths to mount for it."""
    mounts = [(cache, INSIDE)]
    inside = {"cache-dir": str(INSIDE / "pip")}
    for name, value in settings.items():
        words = value.split()
        for number, word in enumerate(words):
            path = Path(word.removeprefix("file://")).expanduser()
            if path.is_absolute() and path.exists():
                there = INSIDE / f"{name}-{number}"
                mounts.append((path, there))
                words[number] = str(there)
        inside[name] = "\n ".join(words)
    return "\n".join(["[global]", *(f"{name} = {value}" for name, value in inside.items()), ""]), mounts


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the layout: its name, its entry in the index, the digests of all its parts."""

    name: str
    entry: dict[str, Any]
    parts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What containerd calls it by."""
        return self.parts[0]

    @property
    def image_id(self) -> str:
        """What buildah calls it by."""
        return self.parts[1].removeprefix("sha256:")


class Buildah:
    """buildah with a store of its own.

    It always runs in a mount namespace of its own (`unshare --mount`), so that what it mounts is gone with
    it, and with `chroot` isolation, which needs neither a runtime nor control groups.
    """

    def __init__(self, store: Path, cache: Path) -> None:
        self.store = store
        self.cache = cache

    @property
    def env(self) -> dict[str, str]:
        """The environment that buildah needs."""
        temporary = self.store / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        return {
            **os.environ,
            "PATH": search_path(),
            "BUILDAH_ISOLATION": "chroot",
            "STORAGE_DRIVER": "overlay",
            "TMPDIR": str(temporary),  # else `RUN --mount=type=cache` would keep its caches in /var/tmp
        }

    def _command(self, *args: str) -> list[str]:
        return [
            "unshare",
            "--mount",
            "buildah",
            "--root",
            str(self.store / "storage"),
            "--runroot",
            str(self.store / "run"),
            *args,
        ]

    def _run(self, *args: str, timeout: float = 120) -> str:
        return run(self._command(*args), env=self.env, timeout=timeout).stdout

    def has(self, reference: str) -> bool:
        """Whether the store has an image."""
        return self.store.is_dir() and self._image_id(reference) is not None

    def _image_id(self, reference: str) -> str | None:
        options = ("--type", "image", "--format", "{{.FromImageID}}")
        inspected = run(self._command("inspect", *options, canonical(reference)), env=self.env, check=False)
        return inspected.stdout.strip() or None

    def build_command(self, context: Path, reference: str, *options: str) -> list[str]:
        """The command that builds the Dockerfile in `context` from images of the store alone."""
        fixed = ("--pull-never", "--layers", "--tag", canonical(reference))
        return self._command("build", *fixed, *options, str(context))

    def build(self, context: Path, reference: str, target: str, timeout: float = 1200) -> None:
        """Build one target of a Dockerfile.

        The machine's certificates, pip configuration and download cache are mounted into the build, and are
        not in the image.
        """
        downloads = self.cache / "downloads"
        (downloads / "pip").mkdir(parents=True, exist_ok=True)
        text, mounts = lend(pip_settings(os.environ, pip_files(os.environ)), downloads)
        if CA_BUNDLE.exists():
            mounts.append((CA_BUNDLE, CA_BUNDLE))
        env = self.env
        # It may hold a password for a package index: readable by its owner, and gone after the build.
        with tempfile.NamedTemporaryFile("w", dir=env["TMPDIR"], suffix=".conf") as configuration:
            configuration.write(text)
            configuration.flush()
            mounts.append((Path(configuration.name), Path("/etc/pip.conf")))
            volumes = [f"--volume={host}:{there}{'' if there == INSIDE else ':ro'}" for host, there in mounts]
            command = self.build_command(context, reference, *volumes, "--target", target)
            run(command, env=env, timeout=timeout)

    def publish(self, reference: str) -> Published:
        """Copy an image into the layout, from which the node gets it, unless it is there."""
        name = canonical(reference)
        published = self._published(name)
        if published is None or published.image_id != self._image_id(name):
            self._run("push", "--quiet", name, f"oci:{self.layout}:{name}")
            self._sweep()
            published = self._published(name)
            assert published is not None
        return published

    def _published(self, name: str) -> Published | None:
        for entry in self._index():
            if entry.get("annotations", {}).get(_REF_NAME) == name:
                return Published(name, entry, self._parts(entry))
        return None

    def _index(self) -> list[dict[str, Any]]:
        path = self.layout / "index.json"
        return list(_read(path)["manifests"]) if path.exists() else []

    def _parts(self, entry: dict[str, Any]) -> tuple[str, ...]:
        """All that an image consists of: its manifest, its configuration, its layers."""
        manifest = _read(self._blob(entry["digest"]))
        layers = [str(layer["digest"]) for layer in manifest["layers"]]
        return (str(entry["digest"]), str(manifest["config"]["digest"]), *layers)

    @property
    def layout(self) -> Path:
        """The images that have been published, as an OCI image layout."""
        return self.store / "layout"

    def _blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def _sweep(self) -> None:
        """Remove what only earlier builds of the images needed."""
        needed = {digest for entry in self._index() for digest in self._parts(entry)}
        for blob in (self.layout / "blobs/sha256").iterdir():
            if f"sha256:{blob.name}" not in needed:
                blob.unlink()

    def archive(self, image: Published, archive: Path, *, known: Collection[str] = ()) -> None:
        """Write an image to an archive for `ctr images import`, without the parts that containerd knows.

        The base image's layer is a hundred megabytes that need not be written, read and hashed again for each
        change of a line.
        """
        entry = image.entry | {"annotations": {_CONTAINERD_NAME: image.name}}
        index = {"schemaVersion": 2, "manifests": [entry]}
        with tarfile.open(archive, "w") as tar:
            for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
                data = json.dumps(value).encode()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            for digest in image.parts:
                if digest not in known:
                    tar.add(self._blob(digest), f"blobs/{digest.replace(':', '/')}")


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value
