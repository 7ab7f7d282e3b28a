"""``installer serve``: bundles as a read-only registry, in the foreground until it is ended."""

from __future__ import annotations

import logging
import re
import signal
import ssl
import stat
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

from installer.bundle.delta import refuse_gaps
from installer.bundle.trust import check_together
from installer.cli.console import say, size_text
from installer.cli.open import TrustOptions, base_option, open_accepted, trust_options
from installer.errors import InvalidInput, TransferFailed
from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer, parse_listen
from installer.serve.connection import access_log as access_logger
from installer.serve.nodes import CERTS_D, hosts_toml, hosts_toml_path
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_PATH = click.Path(path_type=Path)
_READY = re.compile(rb"https?://[!-~]{1,300}\n\Z")
_MAX_READY = 512


@click.command("serve")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=_PATH)
@base_option
@trust_options
@click.option(
    "--listen", default="127.0.0.1:5000", show_default=True, help="Address; port 0 takes any."
)
@click.option("--tls-cert", type=_PATH, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_PATH, help="Its private key, PEM, without a passphrase.")
@click.option("--plain-http", is_flag=True, help="Allow other machines in without TLS.")
@click.option(
    "--accepted",
    multiple=True,
    metavar="DIGEST",
    help="A bundle.json that a run has accepted here: its expiry matters no more.",
)
@click.option("--ready-file", type=_PATH, help="Write the URL here once it is served.")
@click.option("--access-log", is_flag=True, help="A line for each request on standard error.")
def command(
    bundles: tuple[Path, ...],
    trusted: TrustOptions,
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    plain_http: bool,  # noqa: FBT001 (click hands it over by name)
    ready_file: Path | None,
    access_log: bool,  # noqa: FBT001 (the same)
    *,
    accepted: tuple[str, ...],
) -> None:
    """Serve one or several BUNDLEs (deltas and what they stand on) as a registry, in place.

    Signatures are checked first. Each blob is checked before it goes out for the first time, and
    all of them in the background; /healthz tells how far that is.
    """
    address = parse_listen(listen)
    tls = _tls(tls_cert, tls_key)
    if ready_file is not None:
        _refuse_foreign(ready_file)
    with ExitStack() as stack:
        stack.enter_context(_logged_to_terminal(access=access_log))
        anchor, now = trusted.anchor(), datetime.now(UTC)
        opened = [
            stack.enter_context(open_accepted(path, anchor, accepted, now, alone=number > 0))
            for number, path in enumerate(bundles)
        ]
        check_together([bundle.manifest for bundle in opened])
        store = BundleStore(*opened)
        for bundle in opened:
            refuse_gaps(bundle, [m for m in bundle.missing if not store.place(m.digest)])
        server = BundleServer(store, address, tls=tls, plain_http=plain_http)
        ended = stack.enter_context(_end_signals())
        stack.enter_context(server)
        for bundle in store.bundles:
            manifest = bundle.manifest
            say(
                f"serving {manifest.name} serial {manifest.serial} of channel {manifest.channel}, "
                f"{size_text(bundle.layout.size)}, signed by {', '.join(bundle.signers)[:16]}"
            )
        say(f"at {server.url}; all content is checked in the background: {server.url}/healthz")
        say(_node_configuration(server.url, store.hosts, ca=tls_cert))
        if ready_file is not None:
            stack.enter_context(_ready(ready_file, server.url))
        number = ended.get()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    say("stopped")


def _node_configuration(url: str, upstreams: Sequence[str], *, ca: Path | None) -> str:
    """How nodes with containerd are pointed at the registry."""
    scheme, _, authority = url.partition("://")
    host, _, port = authority.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 (compared, not listened on)
        url = f"{scheme}://ADDRESS-OF-THIS-MACHINE:{port}"
    on_node = f"{CERTS_D}/ca.pem" if ca else ""
    lines = [
        "",
        f'containerd on each node, with config_path = "{CERTS_D}": write this',
        *(f"  as {hosts_toml_path(upstream)}" for upstream in upstreams),
        *([f"  and as {on_node} the certificate that {ca} is signed by"] if ca else []),
        "",
        *(f"    {line}".rstrip() for line in hosts_toml(url, ca=on_node).splitlines()),
    ]
    return "\n".join(lines)


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidInput("--tls-cert and --tls-key are only of use together")
    for path in (certificate, key):
        if not path.is_file():
            raise InvalidInput(f"{path}: no such file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password, since OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InvalidInput(
            f"{certificate}, {key}: not a certificate and its private key: {reason}",
            hint="both as PEM, the chain's first certificate the server's, the key not encrypted",
        ) from error
    return context


class _Terminal(logging.Handler):
    """Log records as messages for the person who watches."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


@contextmanager
def _logged_to_terminal(*, access: bool) -> Iterator[None]:
    logger = logging.getLogger("installer.serve")
    handler = _Terminal()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    before = logger.propagate, access_logger.level
    logger.addHandler(handler)
    logger.propagate = False
    access_logger.setLevel(logging.INFO if access else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, access_logger.level = before


@contextmanager
def _end_signals() -> Iterator[SimpleQueue[int]]:
    """SIGINT and SIGTERM end up in a queue while the block runs."""
    received: SimpleQueue[int] = SimpleQueue()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.put(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_foreign(path: Path) -> None:
    """Raise InvalidInput unless a ready file may be written here.

    One that a killed server left behind is written over, so that starting again just works.
    """
    try:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        if regular and status.st_size <= _MAX_READY and _READY.match(path.read_bytes()):
            return
    except FileNotFoundError:
        if path.parent.is_dir():
            return
        raise InvalidInput(f"--ready-file {path}: there is no such folder") from None
    except OSError as error:
        raise InvalidInput(f"--ready-file {path}: {error.strerror}") from error
    what = "a file that `installer serve` did not write" if regular else "not a file"
    raise InvalidInput(
        f"--ready-file {path}: it exists, and is {what}",
        hint="choose a path that is free: the file is deleted at the end",
    )


@contextmanager
def _ready(path: Path, url: str) -> Iterator[None]:
    """Have a file with the URL appear whole, and delete it at the end if it is still that one."""
    _refuse_foreign(path)
    content = f"{url}\n".encode()
    try:
        write_file(path, content, mode=0o644)
    except TransferFailed as error:
        raise InvalidInput(
            f"--ready-file {error.message}", hint="choose another --ready-file"
        ) from error
    try:
        yield
    finally:
        # What can't be deleted is no reason to end with another error than the one on its way.
        with suppress(OSError, InvalidInput):
            if read_file(path) == content:
                path.unlink()
