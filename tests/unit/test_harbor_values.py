"""The sections of site.yaml in today's chart values, held against the published charts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from installer.documents import key_path
from installer.harbor import values as harbor_values
from installer.harbor.values import overlapping
from installer.helm.chart import ChartArchive
from installer.helm.values import unknown_keys
from installer.site.harbor import Harbor, problems

CHARTS = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared") / "charts"
URL = "https://harbor.plant.example"
HAPROXY = {"haproxy": {"nodes": ["10.0.0.1"]}}
MARKS = {component: f"mark of {component}" for component in harbor_values.INTERNAL}
VAULT = {"address": "https://vault.plant.example:8200", "role": "harbor"}
APP_ROLE = {"roleId": "r", "secretIdFile": "s"}


def harbor(**sections: Any) -> Harbor:
    found = msgspec.convert({"externalURL": URL} | sections, Harbor)
    assert not list(problems(found)), list(problems(found))
    return found


def complaints(**sections: Any) -> list[str]:
    found = msgspec.convert({"externalURL": URL} | sections, Harbor)
    return [f"{key_path(path)}: {message}" for path, message, _ in problems(found)]


def values(**sections: Any) -> dict[str, Any]:
    return harbor_values.harbor_values(
        harbor(**sections),
        "harbor",
        database_password="db word",
        redis_password="redis word",
        internal_marks=MARKS,
    )


EVERYTHING: dict[str, dict[str, Any]] = {
    "demo": {
        "expose": {"type": "nodePort", "httpPort": 30002},
        "certificate": {"selfSigned": {}},
        "storage": {"nfs": {"server": "10.0.0.9", "path": "/srv/harbor"}},
        "database": {"host": "10.0.0.8", "passwordFile": "p", "ca": "ca.pem"},
        "redis": {"addresses": ["a:26379", "b:26379"], "sentinelMaster": "m"},
        "loadBalancer": HAPROXY,
    },
    "ingress": {
        "expose": {"type": "ingress", "ingressClass": "nginx"},
        "certificate": {"provided": {"certificate": "c", "key": "k"}},
        "storage": {"storageClass": "fast", "sizes": {"registry": "500Gi", "jobservice": "2Gi"}},
        "internalTLS": {},
    },
    "loadBalancer": {
        "expose": {"type": "loadBalancer", "address": "10.0.0.7"},
        "certificate": {"secret": "theirs"},
        "storage": {"claim": "theirs"},
    },
    "trial": {"storage": {"ephemeral": {}}, "expose": {}},
}


@pytest.mark.parametrize("chart", ["harbor-1.18.4.tgz", "harbor-1.19.1.tgz"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_key_is_one_of_the_chart(name: str, chart: str) -> None:
    path = CHARTS / chart
    if not path.is_file():
        pytest.skip(f"{path} is not there: set AIRGAP_SHARED to the folder with the charts")
    archive = ChartArchive.read(path.read_bytes(), chart)
    assert not list(
        unknown_keys(values(**EVERYTHING[name]), archive.values, commented=archive.commented)
    )


def test_sections_that_are_left_out_are_left_to_the_chart() -> None:
    assert values() == {"externalURL": URL}


def test_each_component_has_a_folder_of_its_own_in_the_shared_volume() -> None:
    claims = values(storage={"nfs": {"server": "n", "path": "/x"}})["persistence"][
        "persistentVolumeClaim"
    ]
    found = [claims["jobservice"]["jobLog"], *(claims[c] for c in claims if c != "jobservice")]
    assert {claim["existingClaim"] for claim in found} == {"harbor-data"}
    assert len({claim["subPath"] for claim in found}) == len(found) == 5
    assert not any(claim["subPath"].startswith("/") for claim in found)


def test_a_volume_of_one_node_is_let_go_before_the_next_pod_comes() -> None:
    found = values(storage={"storageClass": "fast", "sizes": {"registry": "9Gi"}})
    assert found["updateStrategy"] == {"type": "Recreate"}
    registry = found["persistence"]["persistentVolumeClaim"]["registry"]
    assert registry == {"storageClass": "fast", "size": "9Gi"}
    assert "updateStrategy" not in values(storage={"claim": "shared"})


def test_several_pods_share_the_volumes_of_registry_and_jobservice_only() -> None:
    found = values(storage={"storageClass": "nfs", "accessMode": "ReadWriteMany"})
    assert "updateStrategy" not in found
    claims = found["persistence"]["persistentVolumeClaim"]
    shared = {"storageClass": "nfs", "accessMode": "ReadWriteMany"}
    assert claims["registry"] == claims["jobservice"]["jobLog"] == shared
    # What a StatefulSet has made its claims from can't be changed.
    assert claims["database"] == claims["redis"] == claims["trivy"] == {"storageClass": "nfs"}


def test_tls_ends_at_haproxy_or_at_harbor() -> None:
    sections: dict[str, Any] = {"certificate": {"selfSigned": {}}}
    ended = values(**sections, loadBalancer=HAPROXY)
    assert ended["expose"]["tls"] == {"enabled": False}
    passthrough = {"haproxy": HAPROXY["haproxy"] | {"mode": "passthrough"}}
    for more in ({"loadBalancer": passthrough}, {}):
        tls = values(**sections, **more)["expose"]["tls"]
        assert tls == {
            "enabled": True,
            "certSource": "secret",
            "secret": {"secretName": "harbor-external-tls"},
        }
    theirs = values(certificate={"secret": "theirs"})["expose"]["tls"]["secret"]
    assert theirs == {"secretName": "theirs"}
    issued = values(certificate={"vault": VAULT | {"appRole": APP_ROLE}})["expose"]["tls"]["secret"]
    assert issued == {"secretName": "harbor-external-tls"}
    # Another one than ours: Helm must not own what cert-manager writes.
    managed = values(certificate={"certManager": {"selfSigned": {}}})["expose"]["tls"]["secret"]
    assert managed == {"secretName": "harbor-issued-tls"}


def test_pods_carry_the_mark_of_the_certificate_that_they_have() -> None:
    found = values(internalTLS={})
    assert found["internalTLS"]["core"] == {"secretName": "harbor-internal-core-tls"}
    assert (found["internalTLS"]["enabled"], found["internalTLS"]["certSource"]) == (True, "secret")
    marked = {
        component: part["podAnnotations"]["checksum/internal-tls"]
        for component, part in found.items()
        if isinstance(part, dict) and "podAnnotations" in part
    }
    assert marked == MARKS | {"exporter": MARKS["core"]}
    unmade = harbor_values.harbor_values(harbor(internalTLS={}), "harbor")
    assert set(unmade) == {"externalURL", "internalTLS"}
    assert "internalTLS" not in values()


@pytest.mark.parametrize(
    "own", [{"enabled": False}, {"certSource": "auto"}, {"core": {"secretName": "x"}}]
)
def test_a_persons_own_internal_tls_excludes_the_section(own: dict[str, Any]) -> None:
    assert list(overlapping(values(internalTLS={}), {"internalTLS": own}))
    both = {"internalTLS": {"strong_ssl_ciphers": True}, "core": {"podAnnotations": {"a": "b"}}}
    assert not list(overlapping(values(internalTLS={}), both))


@pytest.mark.parametrize(
    ("release", "service"),
    [("harbor", "harbor-core"), ("my-harbor", "my-harbor-core"), ("hub", "hub-harbor-core")],
)
def test_a_certificate_is_for_the_name_of_the_service(release: str, service: str) -> None:
    assert harbor_values.internal_hosts(release)["core"][0] == service


def test_external_database_and_redis() -> None:
    found = values(**EVERYTHING["demo"])
    assert found["database"]["external"] == {
        "host": "10.0.0.8", "port": "5432", "username": "harbor", "password": "db word",
        "coreDatabase": "registry", "sslmode": "verify-full",
    }  # fmt: skip
    assert found["redis"]["external"]["addr"] == "a:26379,b:26379"
    assert found["redis"]["external"]["password"] == "redis word"
    assert found["caBundleSecretName"] == "harbor-ca-bundle"
    assert "caBundleSecretName" not in values(**EVERYTHING["ingress"])


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"certificate": {}}, "certificate: give exactly one of selfSigned, provided, secret"),
        ({"certificate": {"selfSigned": {}, "secret": "x"}}, "certificate: give exactly one of"),
        ({"storage": {}}, "storage: give exactly one of nfs, hostPath, claim, storageClass"),
        (
            {"storage": {"ephemeral": {}, "accessMode": "ReadWriteMany"}},
            "storage.accessMode: only a storageClass makes volumes to access",
        ),
        ({"storage": {"claim": "x", "ephemeral": {}}}, "storage: give exactly one of"),
        ({"database": {"host": "h"}}, "database: neither passwordFile nor admin"),
        ({"database": {"host": "", "passwordFile": "p"}}, "database.host: it is empty"),
        ({"database": {"host": "::1", "passwordFile": "p"}}, "database.host: pods would look"),
        (
            {"database": {"host": "h", "passwordFile": "p", "name": "x" * 64}},
            "database.name: PostgreSQL takes 1 to 63 bytes",
        ),
        (
            {
                "database": {
                    "host": "h",
                    "username": "postgres",
                    "admin": {"username": "postgres", "passwordFile": "p"},
                }
            },
            "database.username: it is the admin's",
        ),
        ({"database": {"host": "h", "passwordFile": "p", "port": 0}}, "database.port: not a port"),
        (
            {"database": {"host": "h", "passwordFile": "p", "ca": "c", "sslMode": "require"}},
            "database.ca: nothing is verified with sslMode require",
        ),
        ({"redis": {"addresses": []}}, "redis.addresses: none is given"),
        ({"redis": {"addresses": ["a:1", "b:1"]}}, "redis.addresses: there are several"),
        ({"redis": {"addresses": ["a"]}}, "redis.addresses: not a host:port"),
        (
            {"redis": {"addresses": ["a:1"], "sentinelMaster": "m", "tls": True}},
            "redis.sentinelMaster: Harbor's chart can't do Sentinel with tls",
        ),
        ({"redis": {"addresses": ["a:1"], "ca": "c"}}, "redis.ca: nothing is verified"),
        ({"expose": {"httpPort": 70000}}, "expose.httpPort: not a port"),
        (
            {"externalURL": "https://10.0.0.1", "expose": {"type": "ingress"}},
            "externalURL: an Ingress is for a name, not for an address",
        ),
        ({"loadBalancer": HAPROXY}, "loadBalancer.haproxy: harbor.certificate is missing"),
        (
            {"loadBalancer": {"haproxy": {"nodes": []}}, "certificate": {"selfSigned": {}}},
            "loadBalancer.haproxy.nodes: none is given",
        ),
        (
            {"loadBalancer": HAPROXY, "certificate": {"secret": "x"}},
            "loadBalancer.haproxy: HAProxy can't read the certificate out of a Secret",
        ),
        (
            {"loadBalancer": HAPROXY, "certificate": {"selfSigned": {}},
             "expose": {"type": "ingress"}},
            "loadBalancer.haproxy: expose.type is ingress",
        ),
        (
            {"loadBalancer": {"haproxy": {"nodes": ["n"], "listen": "443"}},
             "certificate": {"selfSigned": {}}},
            "loadBalancer.haproxy.listen: not a host:port",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "site",
)  # fmt: skip
def test_what_excludes_or_needs_what(sections: dict[str, Any], complaint: str) -> None:
    found = complaints(**sections)
    assert len(found) == 1, found
    assert found[0].startswith(complaint)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({}, ": give exactly one of issuer, selfSigned, ca, vault"),
        ({"selfSigned": {}, "issuer": {"name": "x"}}, ": give exactly one of"),
        ({"selfSigned": {}, "duration": "90d"}, ".duration: not a number of hours"),
        ({"selfSigned": {}, "duration": "24h"}, ".renewBefore: not shorter than duration"),
        ({"issuer": {"name": "X y"}}, ".issuer.name: not the name of an object"),
        ({"issuer": {"name": "x", "kind": "Vault"}}, ".issuer.kind: one of Issuer and"),
        ({"vault": VAULT}, ".vault: give exactly one of appRole, kubernetes"),
        (
            {"vault": VAULT | {"appRole": APP_ROLE, "address": "http://127.0.0.1:8200"}},
            ".vault.address: not the https URL",
        ),
        (
            {"vault": VAULT | {"kubernetes": {"role": "r", "controller": "cert-manager"}}},
            ".vault.kubernetes.controller: not NAMESPACE/NAME",
        ),
    ],
)
def test_what_cert_manager_is_asked_for(section: dict[str, Any], complaint: str) -> None:
    (found,) = complaints(certificate={"certManager": section})
    assert found.startswith(f"certificate.certManager{complaint}")


@pytest.mark.parametrize(
    "section",
    [
        {"issuer": {"name": "plant", "kind": "ClusterIssuer"}},
        {"issuer": {"name": "pca", "kind": "AWSPCAIssuer", "group": "awspca.cert-manager.io"}},
        {"selfSigned": {}, "names": ["more.plant.example"], "duration": "2160h",
         "renewBefore": "720h"},
        {"ca": {"certificate": "c", "key": "k"}},
        {"vault": VAULT | {"kubernetes": {"role": "r"}}},
    ],
)  # fmt: skip
def test_each_issuer_of_cert_managers(section: dict[str, Any]) -> None:
    assert complaints(certificate={"certManager": section}) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"appRole": None}, ": give exactly one of appRole, kubernetes"),
        ({"kubernetes": {"role": "r", "tokenFile": "t"}}, ": give exactly one of"),
        ({"address": "http://vault:8200"}, ".address: not the https URL"),
        ({"address": "https://vault:82000"}, ".address: not the https URL"),
        ({"address": "https://u:p@vault"}, ".address: not the https URL"),
        ({"address": "https://vault/v1"}, ".address: not the https URL"),
        ({"mount": "/pki"}, ".mount: not a path in Vault"),
        ({"role": "../../sys/seal"}, ".role: not a path in Vault"),
        ({"role": "x?y"}, ".role: not a path in Vault"),
        ({"appRole": APP_ROLE | {"mount": "a/../b"}}, ".appRole.mount: not a path in Vault"),
        ({"ttl": "a while"}, ".ttl: not a duration"),
    ],
)
def test_what_vault_is_asked_for(changes: dict[str, Any], complaint: str) -> None:
    (found,) = complaints(certificate={"vault": VAULT | {"appRole": APP_ROLE} | changes})
    assert found.startswith(f"certificate.vault{complaint}")


def test_vault_may_be_reached_through_its_agent_on_this_machine() -> None:
    section = VAULT | {"appRole": APP_ROLE, "address": "http://127.0.0.1:8200", "ttl": "90d"}
    assert complaints(certificate={"vault": section}) == []


def test_a_certificate_for_plain_http_is_refused() -> None:
    found = msgspec.convert({"externalURL": "http://h", "certificate": {"selfSigned": {}}}, Harbor)
    assert [message for _, message, _ in problems(found)] == ["externalURL is http"]


def test_keys_that_are_filled_are_found_in_what_a_person_wrote() -> None:
    filled = {"a": {"b": 1, "c": {"d": 2}}, "e": "f"}
    assert list(overlapping(filled, {"a": {"x": 1}, "g": 2, "e2": {}})) == []
    assert list(overlapping(filled, {"a": {"b": 3}, "e": ""})) == ["a.b", "e"]
    assert list(overlapping(filled, {"a": {"c": "text"}})) == ["a.c"]
    assert list(overlapping(filled, {"a": {"c": {}}})) == []
