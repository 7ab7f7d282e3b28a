"""The other seed: a registry of the site takes everything that the bundle carries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from installer.bundle.catalog import catalog
from installer.bundle.delta import descriptors, refuse_gaps
from installer.deploy.plan import unmeasured
from installer.errors import AirgapError, InvalidInput
from installer.oci.auth import Credentials
from installer.oci.bundle_store import BundleStore
from installer.oci.copy import CopyItem, copy
from installer.oci.hosts import RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.registry import RegistryStore
from installer.site.private import read_file, read_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.plan import Meter
    from installer.site.model import Push

_THREADS = 4


class PushBundle:
    """Copy every image, chart and file of the bundle into the registry, tags last."""

    name = "seed"

    def __init__(self, push: Push, bundle: VerifiedBundle, meter: Meter = unmeasured) -> None:
        self._push = push
        self._meter = meter
        self._bundle = bundle
        self._host, _, prefix = push.registry.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def sentence(self) -> str:
        """What applying it does."""
        return f"Push the bundle's content into {self._push.registry}"

    def ca(self) -> bytes | None:
        """Certificates that the registry is checked with, None for the system's."""
        return read_file(Path(self._push.ca)) if self._push.ca else None

    def refuse_gaps(self) -> None:
        """Raise PreflightFailed for what a delta requires and neither bases nor registry have.

        Raises TransferFailed when the registry can't be asked.
        """
        missing = {member.digest: member for member in self._bundle.missing}
        if not missing:
            return
        wanted = [
            (item.target_repository, descriptor)
            for item in self._items()
            for descriptor in descriptors(self._bundle, item.root)
            if descriptor.digest in missing
        ]
        with self._registry() as registry, ThreadPoolExecutor(_THREADS) as pool:
            there = list(pool.map(lambda asked: registry.exists(*asked), wanted))
        unknown = missing.keys() - {descriptor.digest for _, descriptor in wanted}
        lacking = unknown | {
            d.digest for (_, d), held in zip(wanted, there, strict=True) if not held
        }
        refuse_gaps(self._bundle, [missing[digest] for digest in sorted(lacking)])

    def preflight(self) -> None:
        """Refuse a password file that can't be used; raises InvalidInput."""
        self._login()

    def check(self) -> bool:
        """Whether the registry has every root, and its tag; False also when it can't be asked."""
        try:
            with self._registry() as registry:
                for item in self._items():
                    if not registry.exists(item.target_repository, item.root):
                        return False
                    for tag in item.tags:
                        there = registry.resolve(item.target_repository, tag)
                        if there.digest != item.root.digest:
                            return False
        except InvalidInput:
            raise
        except AirgapError:
            return False
        return True

    def apply(self) -> str:
        """Copy what is missing; raises TransferFailed, and goes on when run again."""
        total = self._bundle.content_size
        with self._registry() as registry, self._meter("pushing", total) as advance:
            store = BundleStore(self._bundle)
            done = copy(store, registry, self._items(), threads=_THREADS, progress=advance)
        return (
            f"{done.blobs_moved} blobs and {done.manifests_moved} manifests pushed, "
            f"{done.blobs_skipped + done.manifests_skipped} were there"
        )

    def _items(self) -> list[CopyItem]:
        return [
            CopyItem(
                named.repository,
                self._prefix + named.repository,
                named.content.root,
                (named.tag,) if named.tag else (),
            )
            for named in catalog(self._bundle.manifest)
        ]

    @contextmanager
    def _registry(self) -> Iterator[RegistryStore]:
        push = self._push
        scheme = "http" if push.plain_http else "https"
        entry = RegistryEntry((f"{scheme}://{self._host}",), push.ca)
        with RegistryStore(
            self._host,
            RegistryHosts(RegistryConfig({self._host: entry})),
            self._login(),
            environment=False,  # a proxy of this machine is not the way to the site's registry
        ) as registry:
            yield registry

    def _login(self) -> Credentials | None:
        push = self._push
        if not push.username:
            return None
        return Credentials(push.username, read_secret(Path(push.password_file)))
