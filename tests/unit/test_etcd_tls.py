"""A cluster that is reached over TLS: members are believed by their authority, and believe clients by theirs."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import etcd_cluster
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from etcd_cluster import Cluster
from test_store import RECORD

from jvpn.lab.running import wait_for
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdAccess
from jvpn.store.etcd_watch import Change, Everything, FleetWatch, Owned


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(self._name, self._key).add_extension(constraint, critical=True)
        self.ca = self._write("ca", made.sign(self._key, hashes.SHA256()), None)[0]

    def issue(self, name: str, address: str) -> tuple[Path, Path]:
        """Certificate and key files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        made = self._builder(subject, key).add_extension(alternative, critical=False)
        return self._write(name, made.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))

    def _write(
        self, name: str, made: x509.Certificate, key: ec.EllipticCurvePrivateKey | None
    ) -> tuple[Path, Path]:
        certificate, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        if key is not None:
            form = serialization.PrivateFormat.PKCS8
            none = serialization.NoEncryption()
            key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
        return certificate, key_file


Secured = tuple[Cluster, dict[str, Path]]
Clusters = Callable[[str | None], Secured]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Clusters]:
    etcd_cluster.need_etcd()
    running: list[Cluster] = []

    def start(address: str | None) -> Secured:
        """One member, whose certificate is for `address`, or its own for None."""
        authority = Authority(tmp_path / "authority")
        one = etcd_cluster.prepared(tmp_path, 1, "https")
        certificate, key = authority.issue("member", address or one.members[0].address)
        one.options += ["--cert-file", str(certificate), "--key-file", str(key)]
        one.options += ["--client-cert-auth", "--trusted-ca-file", str(authority.ca)]
        certificate, key = authority.issue("client", "127.0.0.1")
        ours = {"ca": authority.ca, "certificate": certificate, "key": key}
        running.append(one)
        one.start(one.members[0])
        if address is None:
            wait_for("the member", lambda: one.answers(**ours))
        return one, ours

    yield start
    for cluster in running:
        cluster.close()


def test_sessions_and_changes_come_over_tls(secured: Clusters, tmp_path: Path) -> None:
    cluster, ours = secured(None)
    store = EtcdStore(cluster.access(**ours), etcd_cluster.fleet_key(tmp_path))
    watch = FleetWatch(cluster.access(**ours))
    assert isinstance(watch.poll(1)[0], Everything)
    assert watch.poll(0) == []
    store.save(RECORD, 100)
    assert store.load(RECORD.session_id) == RECORD
    store.forget(RECORD.session_id)
    changes: list[Change] = []
    wait_for("its end", lambda: changes.extend(watch.poll(0.2)) or len(changes) == 2)
    assert [isinstance(change, Owned) and change.now is None for change in changes] == [False, True]
    watch.close()
    store.close()


@pytest.mark.parametrize("wrong", ["authority", "client", "nobody"])
def test_who_cannot_be_believed_is_refused(secured: Clusters, tmp_path: Path, wrong: str) -> None:
    cluster, ours = secured(None)
    strange = Authority(tmp_path / "strange")
    if wrong == "authority":
        ours["ca"] = strange.ca
    elif wrong == "client":
        ours["certificate"], ours["key"] = strange.issue("client", "127.0.0.1")
    else:
        ours = {"ca": ours["ca"]}
    with pytest.raises(StoreError, match=r"no member of etcd answers"):
        EtcdStore(cluster.access(**ours), etcd_cluster.fleet_key(tmp_path))


def test_a_member_with_anothers_certificate_is_refused(secured: Clusters, tmp_path: Path) -> None:
    cluster, ours = secured("192.0.2.1")
    key_file = etcd_cluster.fleet_key(tmp_path)

    def refusal() -> str:
        with pytest.raises(StoreError) as raised:
            EtcdStore(cluster.access(**ours), key_file)
        return str(raised.value)

    wait_for("the member to be there", lambda: "refused" not in refusal())
    assert "IP address mismatch" in refusal()


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    access = EtcdAccess(["https://127.0.0.1:1"], ca=tmp_path / "absent.pem")
    with pytest.raises(StoreError, match="cannot use etcd"):
        EtcdStore(access, etcd_cluster.fleet_key(tmp_path))
