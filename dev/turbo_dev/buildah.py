"""buildah with a store and a mount namespace of its own: no mount and no file stays on the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .packages import apt_mirror
from .paths import REPOSITORY, cache_root
from .progress import step
from .shell import CommandError, run

BASE = "docker.io/library/debian:12-slim"
DOCKERFILE = REPOSITORY / "Dockerfile"

# Passed on to the build where the host has them: a package index, bundles of a private certificate authority.
_PASSED_ON = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")
_BUNDLES = ("SSL_CERT_FILE", "PIP_CERT")


def home() -> Path:
    """Where the images, their layers and the logs of builds are."""
    return cache_root() / "buildah"


def exists(image: str) -> bool:
    """An image of that name is in the store."""
    return image in images()


def images() -> list[str]:
    """The names of all tagged images in the store."""
    rows = json.loads(_buildah("images", "--json") or "[]")
    return [name for row in rows or [] for name in row.get("names") or []]


def build(target: str, image: str, contexts: dict[str, Path], file: Path = DOCKERFILE) -> None:
    """Build one target of a Dockerfile as `image`; what the layers' cache has is not built again.

    The caller holds the lock of builds.
    """
    _remove_containers()
    _ensure_base()
    options = ["--layers", "--isolation=chroot", "--network=host", "--pull-never", f"--target={target}"]
    options.append(f"--file={file}")
    options += [f"--build-context={name}={folder}" for name, folder in contexts.items()]
    for name in _PASSED_ON:
        if os.environ.get(name):
            options.append(f"--build-arg={name}={os.environ[name]}")
    for name in _BUNDLES:
        if os.environ.get(name):
            bundle = Path(os.environ[name]).resolve()
            # beside the image's own certificates, which its packages write
            place = f"/run/{name.lower()}"
            options += [f"--volume={bundle.parent}:{place}:ro", f"--build-arg={name}={place}/{bundle.name}"]
    wheels = _uv_cache()
    if wheels.is_dir():  # what `make setup` has downloaded is not downloaded again
        options += [f"--volume={wheels}:/var/cache/uv:rw", "--build-arg=UV_CACHE_DIR=/var/cache/uv"]
        options.append("--build-arg=UV_NO_CACHE=false")
    log = home() / f"build-{target}.log"
    command = _command("bud", *options, f"--tag={image}", str(REPOSITORY))
    with log.open("wb") as said:
        status = subprocess.run(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, check=False
        ).returncode
    if status != 0:
        end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise CommandError(f"building {image} failed; the whole log is {log}\n{end}")


def push(image: str, destination: str, *options: str) -> None:
    """Copy an image from the store to a registry or folder (written as in containers-transports(5))."""
    _buildah("push", "--quiet", *options, image, destination)


def forget(image: str) -> None:
    """Remove a name, and the layers that no other image has."""
    _buildah("rmi", image)


def _remove_containers() -> None:
    """Remove the working containers of builds that were killed: one of the runtime takes 7 GB."""
    _buildah("rm", "--all")


def _ensure_base() -> None:
    """Put debian:12-slim in the store: from its registry where TURBO_PULL_BASE=1 says so, else made here."""
    if exists(BASE):
        return
    if os.environ.get("TURBO_PULL_BASE") == "1":
        with step(f"pull {BASE}"):
            _buildah("pull", BASE)
        return
    tree = home() / "debian"
    with step("make debian:12-slim with debootstrap", "50 s"):
        run(["rm", "-rf", tree])
        run(["debootstrap", "--variant=minbase", "bookworm", tree, apt_mirror()])
        run(["rm", "-rf", *tree.glob("var/cache/apt/archives/*.deb"), *tree.glob("var/lib/apt/lists/*")])
        container = _buildah("from", "scratch").strip()
        _buildah("add", "--quiet", container, str(tree))
        _buildah("config", "--cmd=bash", container)
        _buildah("commit", "--quiet", "--rm", container, BASE)
        run(["rm", "-rf", tree])


def _uv_cache() -> Path:
    own = os.environ.get("UV_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"


def _buildah(*words: str) -> str:
    return run(_command(*words))


def _command(*words: str) -> Sequence[str]:
    """buildah in a mount namespace where /var/lib is ours: it keeps a cache of its own there."""
    state = home() / "var-lib"
    state.mkdir(parents=True, exist_ok=True)
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    inside += ['mount -n --bind "$0" /var/lib && exec "$@"', str(state)]
    places = [f"--root={home() / 'storage'}", f"--runroot={home() / 'run'}", "--storage-driver=overlay"]
    return [*inside, "buildah", *places, *words]
