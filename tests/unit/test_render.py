"""What `installer render` prints names every object, and no secret."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from installer.cli.render import without_secrets
from installer.errors import InvalidInput
from installer.redaction import secret_texts

OBJECTS = """---
# Source: harbor/templates/core/secret.yaml
apiVersion: v1
kind: Secret
metadata:
  name: core
type: Opaque
data:
  secretKey: bm90LWEtc2VjdXJlLWtleQ==
# a comment in the first column
  tls.key: |
    c2VjcmV0
stringData:
  password: hunter2
---
apiVersion: v1\t
kind: "Secret"
"data": {password: aHVudGVyMg==}
metadata: {name: second}
---
apiVersion: v1
kind: List
items:
- kind: ConfigMap
  metadata: {name: listed}
  data: {port: "8081"}
- kind: Secret
  metadata: {name: third}
  stringData: {password: hunter2}
- {kind: SecretList, items: [{metadata: {name: fourth}, data: {password: aHVudGVyMg==}}]}
---
{"kind": "Secret", "metadata": {"name": "fifth"}, "data": {"password": "aHVudGVyMg=="}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  port: "8080"
  script: |
    first
    second
"""


def shown(objects: str, *values: object) -> str:
    secrets = [text for value in values for text in secret_texts({"v": value})]
    return "".join(without_secrets(objects, secrets))


def test_contents_of_secrets_are_left_out_and_their_keys_stay() -> None:
    text = shown(OBJECTS)
    for secret in ("bm90", "c2VjcmV0", "hunter2", "aHVudGVyMg"):
        assert secret not in text
    documents = list(yaml.safe_load_all(text))
    assert documents[0]["data"] == {"secretKey": "***", "tls.key": "***"}
    assert documents[0]["metadata"] == {"name": "core"}
    assert documents[1]["data"] == {"password": "***"}
    assert documents[2]["items"][1]["stringData"] == {"password": "***"}
    assert documents[2]["items"][2]["items"][0]["data"] == {"password": "***"}
    assert documents[3]["data"] == {"password": "***"}


def test_other_objects_stay_as_they_are() -> None:
    documents = list(yaml.safe_load_all(shown(OBJECTS)))
    assert documents[2]["items"][0]["data"] == {"port": "8081"}
    assert documents[4]["data"] == {"port": "8080", "script": "first\nsecond\n"}
    assert "# Source: harbor/templates/core/secret.yaml\n" in shown(OBJECTS)
    assert "script: |\n" in shown(OBJECTS)


def test_what_is_not_yaml_is_not_printed() -> None:
    with pytest.raises(InvalidInput):
        shown("kind: Secret\ndata: {password: hunter2")


SECRET = 'it\'s "p@ss"/+ wörd\\1'
PLACES = {
    "plain": SECRET,
    "in a line": f"requirepass {SECRET} # for redis",
    "of another type": json.dumps({"password": SECRET}),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "in a query": "redis://redis?password=it%27s+%22p%40ss%22%2F%2B+w%C3%B6rd%5C1",
    "in a path": "redis://it%27s%20%22p%40ss%22%2F%2B%20w%C3%B6rd%5C1/0",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_of_the_site_is_cut_out_wherever_a_chart_puts_it(place: str) -> None:
    config = json.dumps({"kind": "ConfigMap", "data": {"x": PLACES[place]}})
    assert "***" not in shown(config)
    text = shown(config, {"external": {"password": SECRET}})
    assert "***" in text
    for piece in ("p@ss", "p%40ss", "rd\\1", "rd%5C1", base64.b64encode(b"it's")[:4].decode()):
        assert piece not in text


@pytest.mark.parametrize(
    ("values", "rendered", "kept"),
    [
        ({"proxy": {"httpProxy": "http://ops:Geheim1@proxy:3128"}},
         "http://ops:Geheim1@proxy:3128", "proxy:3128"),
        ({"proxy": {"httpProxy": "http://ops:Geheim1@proxy:3128"}}, "Geheim1", "kind: ConfigMap"),
        ({"url": "https://a:b@h/x"}, "https://a:b@h/x", "h/x"),
        ({"extraEnvVars": [{"name": "DB_PASSWORD", "value": "Geheim1"}]}, "Geheim1", "ConfigMap"),
        ({"password": 12345678}, "12345678", "kind: ConfigMap"),
    ],
)  # fmt: skip
def test_what_values_show_to_be_a_secret_is_one(values: object, rendered: str, kept: str) -> None:
    text = shown(json.dumps({"kind": "ConfigMap", "data": {"x": rendered}}), values)
    assert rendered not in text
    assert kept in text


@pytest.mark.parametrize(
    "values",
    [
        {"secret": {"secretName": "harbor-tls"}},
        {"existingSecret": "harbor-tls"},
        {"url": "https://harbor-tls/x"},
    ],
)
def test_the_name_of_a_secret_is_none(values: object) -> None:
    assert "harbor-tls" in shown("kind: Ingress\nspec: {tls: harbor-tls}\n", values)
