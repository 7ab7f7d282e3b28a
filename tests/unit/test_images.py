"""Discovery on samples of rendered charts: nothing missed, nothing invented."""

from __future__ import annotations

import pytest

from installer.errors import InvalidInput
from installer.helm.images import find_images

POD = """\
---
# Source: x/templates/pod.yaml
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: n}
spec:
"""


def names(rendered: str) -> list[str]:
    return [str(image.reference) for image in find_images(rendered)]


def container(body: str) -> list[str]:
    """Images of a container besides its own."""
    text = POD + "  containers:\n  - name: c\n    image: own:1\n" + body
    return [name for name in names(text) if name != "docker.io/library/own:1"]


def test_every_kind_of_container_in_every_kind_of_object() -> None:
    pod = """
          initContainers: [{name: i, image: "quay.io/a/init:1"}]
          containers: [{name: c, image: 'main'}]
          ephemeralContainers: [{name: e, image: debug:2}]
"""
    rendered = ""
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet"):
        rendered += f"---\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n  template:\n    spec:{pod}"
    rendered += f"---\nkind: CronJob\nspec:\n jobTemplate:\n  spec:\n   template:\n    spec:{pod}"
    found = names(rendered)
    assert len(found) == 18
    assert set(found) == {
        "quay.io/a/init:1",
        "docker.io/library/main",
        "docker.io/library/debug:2",
    }


def test_the_origin_says_object_and_field() -> None:
    (found,) = find_images(POD + "  containers: [{name: c, image: goharbor/core:v1}]\n")
    assert found.text == "goharbor/core:v1"
    assert str(found.reference) == "docker.io/goharbor/core:v1"
    assert found.origin.namespace == "n"
    assert str(found.origin) == "Pod/p spec.containers[c].image"


def test_hooks_tests_lists_custom_resources_and_image_volumes() -> None:
    rendered = """
apiVersion: v1
kind: List
items:
- kind: Pod
  metadata: {name: t, annotations: {"helm.sh/hook": test}}
  spec: {containers: [{image: a:1}], volumes: [{name: v, image: {reference: b:2}}]}
- kind: ConfigMapList
  items: [{kind: Pod, metadata: {name: u}, spec: {containers: [{image: c:3}]}}]
---
---
# only a comment
---
apiVersion: monitoring.coreos.com/v1
kind: Prometheus
metadata: {name: m}
spec: {image: quay.io/prometheus/prometheus:v3, baseImage: "", image2: x, sidecar: {image: ""}}
---
apiVersion: postgresql.cnpg.io/v1
kind: Cluster
metadata: {name: m}
spec: {imageName: "ghcr.io/cloudnative-pg/postgresql:17.2", logImage: ghcr.io/x/y@sha256:%s}
""" % ("0" * 64)
    assert names(rendered) == [
        "docker.io/library/a:1",
        "docker.io/library/b:2",
        "docker.io/library/c:3",
        "quay.io/prometheus/prometheus:v3",
        "ghcr.io/cloudnative-pg/postgresql:17.2",
        f"ghcr.io/x/y@sha256:{'0' * 64}",
    ]


@pytest.mark.parametrize(
    ("name", "value", "image"),
    [
        ("AGENT_INJECT_VAULT_IMAGE", "hashicorp/vault:1.2", "docker.io/hashicorp/vault:1.2"),
        ("HELPER_IMAGE", "busybox", "docker.io/library/busybox"),
        ("RELATED_IMAGE_PROXY", "quay.io/a/b:1", "quay.io/a/b:1"),
        ("RELATED_IMAGE_PROXY", "a/b:1", "docker.io/a/b:1"),
        ("agentImage", "a/b", "docker.io/a/b"),
        ("ANYTHING", "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("SIDECARS", "x, quay.io/a/b:1,other", "quay.io/a/b:1"),
    ],
)
def test_images_in_environment_variables(name: str, value: str, image: str) -> None:
    assert container(f"    env: [{{name: {name}, value: '{value}'}}]\n") == [image]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCANNER_TRIVY_DB_REPOSITORY", "mirror.gcr.io/aquasec/trivy-db,ghcr.io/aquasecurity/x"),
        ("SCANNER_TRIVY_DB_REPOSITORY", "ghcr.io/aquasecurity/trivy-db:2"),
        ("IMAGE_PULL_POLICY", "always"),
        ("IMAGE_PULL_SECRET", "my-secret"),
        ("IMAGE_TAG", "latest"),
        ("ENABLE_IMAGE", "true"),
        ("IMAGE_STORE", "redis:6379"),
        ("IMAGE_COUNT", "3"),
        ("_REDIS_URL_CORE", "redis://harbor-redis:6379/0?idle_timeout_seconds=30"),
        ("CORE_URL", "http://harbor-core.ns.svc:80/x"),
        ("REGISTRY", "harbor.example.com:5000"),
        ("HOST", "db.example.com:5432"),
        ("PATH_OF_IMAGE", "/usr/share/image"),
        ("VAULT_IMAGE", "$(OTHER):1"),
        ("LOG_LEVEL", "info"),
    ],
)
def test_what_looks_like_an_image_in_the_environment(name: str, value: str) -> None:
    assert container(f"    env: [{{name: {name}, value: '{value}'}}]\n") == []


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        ('["--acme-http01-solver-image=quay.io/j/s:1"]', ["quay.io/j/s:1"]),
        ('["--helper-image", busybox]', ["docker.io/library/busybox"]),
        ('["-image=a:1"]', ["docker.io/library/a:1"]),
        ('["--config-reloader=quay.io/p/r:v1"]', ["quay.io/p/r:v1"]),
        ('["quay.io/p/r:v1"]', ["quay.io/p/r:v1"]),
        ('[sh, -c, "kubectl run x --image=a/b:1 && true"]', ["docker.io/a/b:1"]),
        ('[sh, -c, "ctr pull \\"quay.io/a/b:1\\"; x"]', ["quay.io/a/b:1"]),
        ('["--image-pull-policy", always, "--image-tag=v1"]', []),
        ('["--upstream=http://a.example.com/x:1", "--listen=0.0.0.0:8080"]', []),
        ('["--leader-elect", run, "--image"]', []),
        ('["--image-gc-high-threshold=85"]', []),
        ("null", []),
        ("[1, true]", []),
    ],
)
def test_images_in_arguments(arguments: str, images: list[str]) -> None:
    assert container(f"    args: {arguments}\n") == images
    assert container(f"    command: {arguments}\n") == images


def test_what_is_not_an_image() -> None:
    rendered = """
kind: CustomResourceDefinition
metadata: {name: d}
spec: {schema: {properties: {image: {type: string}, x: {example: {image: "not an image"}}}}}
---
kind: RoleBinding
metadata: {name: b}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: "system:node"}
---
kind: ConfigMap
metadata: {name: c}
data: {image: "no image: at all", text: "image: {{ .x }}\\nkind: none"}
---
kind: Secret
metadata: {name: s}
data: {image: bm90IGFuIGltYWdl}
"""
    assert names(rendered) == []


def test_manifests_in_config_maps() -> None:
    rendered = """
kind: ConfigMap
metadata: {name: local-path}
data:
  helperPod.yaml: |
    apiVersion: v1
    kind: Pod
    metadata: {name: helper}
    spec:
      containers: [{name: h, image: busybox:1}]
"""
    (found,) = find_images(rendered)
    assert str(found.origin) == (
        "ConfigMap/local-path data[helperPod.yaml].spec.containers[h].image"
    )


@pytest.mark.parametrize("image", ["a/UPPER:1", "a b", "{{ .x }}", ":v1", "a:b:c"])
def test_an_image_that_is_no_reference_names_object_and_field(image: str) -> None:
    with pytest.raises(InvalidInput, match=r"Pod/p spec\.containers\[0\]\.image: not an image"):
        names(POD + f"  containers: [{{image: '{image}'}}]\n")
    with pytest.raises(InvalidInput, match="Pod/p"):
        names(POD + "  containers: [{image: ''}]\n")


def test_tabs_that_helm_and_kubernetes_take() -> None:
    rendered = (
        "kind: StatefulSet\t\nmetadata: {name: db}\nspec:\n  volumeClaimTemplates:\n"
        "  - apiVersion: v1\t\n    kind: PersistentVolumeClaim\n  template:\n    spec:\n"
        "      containers:\n      -\tname: c\n        image:\ta:1\t# first\n"
    )
    assert names(rendered) == ["docker.io/library/a:1"]


def test_values_that_python_yaml_stumbles_over() -> None:
    assert names("kind: X\nenum: [=, 2001-99-99, 1:2]\nspec: {image: a:1}\n") == [
        "docker.io/library/a:1"
    ]


def test_broken_yaml_names_the_template_and_the_line() -> None:
    with pytest.raises(InvalidInput, match=r"x/templates/bad\.yaml:5"):
        names("---\nkind: A\n---\n# Source: x/templates/bad.yaml\na: b: c\n")


def test_it_stays_fast_on_a_large_chart() -> None:
    many = "".join(POD + f"  containers: [{{name: c, image: 'a:{n}'}}]\n" for n in range(2000))
    assert len(names(many)) == 2000
