"""The planted image: the same bytes each time, whole, and another one for another label."""

import gzip
import io
import json
import tarfile

from installer.bundle.digest import Digest
from installer.harbor.planted import CVE, PACKAGE_VERSION, planted_image
from installer.oci.graph import ImageManifest, read_manifest


def test_its_manifest_names_its_blobs() -> None:
    image = planted_image()
    found = read_manifest(image.manifest, image.root.media_type, "planted")
    assert isinstance(found, ImageManifest)
    assert found.children == tuple(blob.descriptor for blob in image.blobs)
    for blob in image.blobs:
        assert Digest.of(blob.data) == blob.descriptor.digest
    assert Digest.of(image.manifest) == image.root.digest


def test_any_tar_reads_its_layer_which_is_the_one_of_the_config() -> None:
    config, layer = planted_image().blobs
    tar = gzip.decompress(layer.data)
    assert json.loads(config.data)["rootfs"]["diff_ids"] == [str(Digest.of(tar))]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        content = archive.extractfile("lib/apk/db/installed")
        assert content is not None
        assert f"\nV:{PACKAGE_VERSION}\n".encode() in content.read()


def test_a_label_makes_another_image_of_the_same_layer() -> None:
    first, again, other = planted_image(), planted_image(CVE), planted_image("run 2")
    assert first == again
    assert other.root.digest != first.root.digest
    assert other.blobs[1] == first.blobs[1]
