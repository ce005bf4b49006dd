"""Building images from ordinary Dockerfiles without a registry, a daemon or traces."""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clusters.api import ClusterError
from clusters.tools import CommandError, run, search_path

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
        return self.store.is_dir() and self.image_id(reference) is not None

    def image_id(self, reference: str) -> str | None:
        """An image's id, the same on the node; None if the store has no such image."""
        options = ("--type", "image", "--format", "{{.FromImageID}}")
        inspected = run(self._command("inspect", *options, canonical(reference)), env=self.env, check=False)
        return inspected.stdout.strip() or None

    def build_command(self, context: Path, reference: str, *options: str) -> list[str]:
        """The command that builds the Dockerfile in `context` from images of the store alone."""
        fixed = ("--pull-never", "--layers", "--format", "docker", "--tag", canonical(reference))
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
            try:
                run(command, env=env, timeout=timeout)
            except CommandError as error:
                said = "\n".join((error.stdout + error.stderr).splitlines()[-40:])
                raise ClusterError(
                    f"target {target} of {context}/Dockerfile does not build:\n{said}"
                ) from None

    def export(self, reference: str, archive: Path, *, known: Collection[str] = ()) -> None:
        """Write an image to an archive for `ctr images import`, without the layers that containerd knows.

        The base image's layer is a hundred megabytes that need not be written, read and hashed again for each
        change of a line. buildah cannot leave it out, but it writes to a pipe, from which the rest is taken.
        """
        name = canonical(reference)
        command = self._command("push", "--quiet", name, f"docker-archive:/dev/stdout:{name}")
        with (
            tempfile.TemporaryFile(dir=self.store) as errors,
            subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=errors) as process,
            tarfile.open(archive, "w") as output,
        ):
            assert process.stdout is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as whole:
                    _repack(whole, output, name, known)
            except (tarfile.TarError, OSError, KeyError):
                process.kill()
                raise
            if process.wait():
                errors.seek(0)
                said = errors.read().decode(errors="replace")
                raise CommandError(command, f"exit status {process.returncode}", "", said)


def _repack(whole: tarfile.TarFile, output: tarfile.TarFile, name: str, known: Collection[str]) -> None:
    """Turn a docker-archive into an OCI layout, which may lack what the reader has; see `export`."""
    sizes: dict[str, int] = {}
    small: dict[str, bytes] = {}
    for member in whole:
        stream = whole.extractfile(member) if member.isfile() else None
        if stream is None:
            continue  # links, for readers of another age
        digest = f"sha256:{member.name.removesuffix('.tar')}"
        if member.name.endswith(".json"):
            small[member.name] = stream.read()
        elif member.name.endswith(".tar"):
            sizes[digest] = member.size
            if digest not in known:
                _add(output, digest, member.size, stream)
    (described,) = json.loads(small["manifest.json"])
    configuration = small[described["Config"]]
    layers = [f"sha256:{layer.removesuffix('.tar')}" for layer in described["Layers"]]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_DOCKER}.distribution.manifest.v2+json",
        "config": _describe("container.image.v1+json", _digest(configuration), len(configuration)),
        "layers": [_describe("image.rootfs.diff.tar", layer, sizes[layer]) for layer in layers],
    }
    data = json.dumps(manifest).encode()
    for blob in (configuration, data):
        _add(output, _digest(blob), len(blob), io.BytesIO(blob))
    entry = _describe("distribution.manifest.v2+json", _digest(data), len(data))
    index = {"schemaVersion": 2, "manifests": [entry | {"annotations": {"io.containerd.image.name": name}}]}
    for path, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        text = json.dumps(value).encode()
        _add(output, path, len(text), io.BytesIO(text))


_DOCKER = "application/vnd.docker"


def _describe(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{_DOCKER}.{kind}", "digest": digest, "size": size}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _add(output: tarfile.TarFile, name: str, size: int, stream: IO[bytes]) -> None:
    member = tarfile.TarInfo(name.replace("sha256:", "blobs/sha256/"))
    member.size = size
    output.addfile(member, stream)
