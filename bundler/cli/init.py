"""``bundler init``: writes a commented spec to start from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from installer.errors import InvalidInput, TransferFailed

_SPECS = {
    ("harbor", "2.15"): "harbor.yaml",
    ("harbor", "2.14"): "harbor-2.14.yaml",
    ("harbor-platform", "2.15"): "harbor-platform.yaml",
    ("trivy-databases", "2.15"): "trivy-databases.yaml",
    ("trivy-databases", "2.14"): "trivy-databases.yaml",
}
_PRODUCTS = list(dict.fromkeys(product for product, _ in _SPECS))
_VERSIONS = list(dict.fromkeys(version for _, version in _SPECS))


@click.command("init")
@click.argument("product", type=click.Choice(_PRODUCTS))
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@click.option(
    "--version",
    type=click.Choice(_VERSIONS),
    default=_VERSIONS[0],
    show_default=True,
    help="Version of Harbor.",
)
def command(product: str, folder: Path, version: str) -> None:
    """Write a commented bundle.yaml into DIR (here, if not given).

    It names Harbor's chart, the values to render it with, Helm, kubectl and Trivy's databases;
    harbor-platform has cert-manager and csi-driver-nfs as well, trivy-databases only the databases,
    for a site that runs. Edit it to taste. A file that is already there is not touched.
    """
    if (product, version) not in _SPECS:
        versions = ", ".join(one for of, one in _SPECS if of == product)
        raise InvalidInput(
            f"--version {version}: there is no spec of {product} for it",
            hint=f"there is: {versions}; the charts of another Harbor can be entered in the file",
        )
    text = resources.files("manifests").joinpath("bundles", _SPECS[product, version]).read_bytes()
    target = folder / "bundle.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInput(
            f"{target if target.exists() else folder}: already exists",
            hint="choose another DIR, or remove the file if it is no longer needed",
        ) from None
    except OSError as error:
        raise TransferFailed(f"{target}: can't be written: {error.strerror or error}") from error
    click.echo(f"wrote {target}\n\nNext:")
    click.echo("  bundler keygen --out release.key      a key to sign with, once")
    click.echo(f"  bundler lock {target}      pins everything by digest")
    click.echo(f"  bundler build {target} --key release.key --out harbor.tar")
