"""How a verb reaches Harbor, by its options."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from installer.cli.run import state_folder_of
from installer.deploy.harbor_access import HarborAccess, access_to
from installer.errors import InvalidInput
from installer.oci.reference import DEFAULT_HOST, Reference
from installer.site.model import read_site
from installer.site.private import read_secret
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Callable


def harbor_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``reach``: from the image's name to the Harbor that it is in."""

    @click.option(
        "--site", "site_file", type=click.Path(path_type=Path), help="The site whose Harbor it is."
    )
    @click.option(
        "--state", "state_folder", type=click.Path(path_type=Path), help="Its state, see `run`."
    )
    @click.option("--release", default="", help="NAMESPACE/NAME, if the site has several Harbors.")
    @click.option(
        "--ca", type=click.Path(path_type=Path), help="Check https with it; without --site."
    )
    @click.option("--plain-http", is_flag=True, help="Speak http; without --site.")
    @click.option("--username", default="", help="Log in as a robot or a person instead of admin.")
    @click.option(
        "--password-file",
        metavar="FILE",
        default="",
        help="Its password; env:NAME takes it from a variable.",
    )
    @wraps(function)
    def wrapped(
        site_file: Path | None,
        state_folder: Path | None,
        release: str,
        ca: Path | None,
        username: str,
        password_file: str,
        *,
        plain_http: bool,
        **arguments: Any,
    ) -> Any:
        def reach(name: str) -> HarborAccess:
            if bool(username) != bool(password_file):
                raise InvalidInput("--username and --password-file belong together")
            word = read_secret(Path(password_file)) if password_file else ""
            if site_file is not None:
                if ca is not None or plain_http:
                    raise InvalidInput("--ca and --plain-http: site.yaml says that already")
                site = read_site(site_file)
                state = State(state_folder_of(site, state_folder))
                login = (username, word) if username else None
                return access_to(site, state, release, login=login)
            host = Reference.parse(name).host
            if host == DEFAULT_HOST:
                raise InvalidInput(
                    f"{name}: in which Harbor?", hint="give --site, or a name with Harbor's host"
                )
            scheme = "http" if plain_http else "https"
            words = (word,) if word else ()
            return HarborAccess(
                f"{scheme}://{host}", str(ca.absolute()) if ca else "", username, words
            )

        return function(reach=reach, **arguments)

    return wrapped
