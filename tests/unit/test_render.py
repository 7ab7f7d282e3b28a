"""What `installer render` prints names every object, and no secret."""

from __future__ import annotations

from installer.cli.render import without_secrets

OBJECTS = """---
# Source: harbor/templates/core/secret.yaml
apiVersion: v1
kind: Secret
metadata:
  name: core
type: Opaque
data:
  secretKey: bm90LWEtc2VjdXJlLWtleQ==
  tls.key: |
    c2VjcmV0
stringData:
  password: hunter2
---
apiVersion: v1
kind: "Secret"
data: {password: aHVudGVyMg==}
metadata: {name: second}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  port: "8080"
"""


def test_contents_of_secrets_are_left_out() -> None:
    shown = without_secrets(OBJECTS)
    for secret in ("bm90", "c2VjcmV0", "hunter2", "aHVudGVyMg"):
        assert secret not in shown
    assert "name: core" in shown
    assert "metadata: {name: second}" in shown
    assert shown.count("# left out") == 3


def test_other_objects_stay_as_they_are() -> None:
    assert 'port: "8080"' in without_secrets(OBJECTS)
    plain = OBJECTS[OBJECTS.rindex("---") :]
    assert without_secrets(plain) == plain
