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
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
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

    def issue(self, name: str, address: str, age_days: int = 1) -> tuple[Path, Path]:
        """Certificate and key files. It is valid for two days, of which so many are over."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        made = self._builder(subject, key, age_days).add_extension(alternative, critical=False)
        return self._write(name, made.sign(self._key, hashes.SHA256()), key)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, age_days: int = 1
    ) -> x509.CertificateBuilder:
        made = datetime.now(UTC) - timedelta(days=age_days)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(made).not_valid_after(made + timedelta(days=2))

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
Clusters = Callable[..., Secured]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Clusters]:
    etcd_cluster.need_etcd()
    running: list[Cluster] = []

    def start(address: str | None, age_days: int = 1) -> Secured:
        """One member, whose certificate is for `address`, or its own for None."""
        authority = Authority(tmp_path / "authority")
        one = etcd_cluster.prepared(tmp_path, 1, "https")
        certificate, key = authority.issue("member", address or one.members[0].address, age_days)
        one.options += ["--cert-file", str(certificate), "--key-file", str(key)]
        one.options += ["--client-cert-auth", "--trusted-ca-file", str(authority.ca)]
        certificate, key = authority.issue("client", "127.0.0.1")
        ours = {"ca": authority.ca, "certificate": certificate, "key": key}
        running.append(one)
        one.start(one.members[0])
        if address is None and age_days == 1:
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


def refusal(access: EtcdAccess) -> str:
    """What a call and a watch say, which is one thing said twice, of a member that is there."""
    client, watch = EtcdClient(access), FleetWatch(access, revision=1)
    said = list[str]()
    try:
        for ask in (lambda: client.read("/v3/kv/range", {"key": "YQ=="}), lambda: endless(watch)):
            with pytest.raises(StoreError) as raised:
                ask()
            said.append(str(raised.value))
    finally:
        client.close()
        watch.close()
    for one in said:
        assert "_ssl.c" not in one
        assert "\n" not in one
    return " | ".join(said)


def endless(watch: FleetWatch) -> None:
    while True:
        watch.poll(1)


def test_who_cannot_be_believed_is_refused_in_words_that_help(secured: Clusters, tmp_path: Path) -> None:
    cluster, ours = secured(None)
    strange, known = Authority(tmp_path / "strange"), Authority(tmp_path / "authority2")
    certificate, key = strange.issue("client", "127.0.0.1")
    theirs = {"certificate": certificate, "key": key}
    said = refusal(cluster.access(**{**ours, "ca": known.ca}))
    assert said.count(f"none of those in fleet.ca, {known.ca}") == 2
    said = refusal(cluster.access(ca=ours["ca"]))
    assert said.count("it wants a certificate of this node: set fleet.certificate and fleet.key") == 2
    said = refusal(cluster.access(**{**ours, **theirs}))
    assert said.count(f"it does not take this node's certificate, {certificate}: that must be from") == 2
    certificate, key = strange.issue("former", "127.0.0.1", age_days=9)
    said = refusal(cluster.access(**{**ours, "certificate": certificate, "key": key}))
    assert said.count("which expired on") == 2
    plain = [member.url.replace("https", "http") for member in cluster.members]
    assert refusal(EtcdAccess(plain)).count(f"if it wants TLS write {cluster.members[0].url}") == 2


@pytest.mark.parametrize(
    ("address", "age_days", "said"),
    [
        ("192.0.2.1", 1, "its certificate is for another address: it needs {own} as an IP address"),
        (None, 9, "its certificate has expired"),
        (None, -1, "its certificate is not valid yet"),
    ],
)
def test_a_member_with_a_certificate_that_is_not_good_is_refused(
    secured: Clusters, address: str | None, age_days: int, said: str
) -> None:
    cluster, ours = secured(address, age_days)
    wanted = said.format(own=cluster.members[0].address)
    wait_for("the member to be there", lambda: "nobody listens" not in refusal(cluster.access(**ours)))
    assert refusal(cluster.access(**ours)).count(wanted) == 2


def test_a_member_without_tls_is_refused_in_words_that_help(tmp_path: Path) -> None:
    etcd_cluster.need_etcd()
    cluster = etcd_cluster.on_loopback(tmp_path, 1)
    try:
        secured = [member.url.replace("http", "https") for member in cluster.members]
        said = refusal(EtcdAccess(secured, ca=Authority(tmp_path / "authority").ca))
        assert said.count("it speaks no TLS there") == 2
        said = refusal(EtcdAccess([cluster.members[0].peer_url]))
        assert "is not of etcd: name its port for clients" in said
    finally:
        cluster.close()


def test_members_that_say_the_same_are_named_in_one_breath() -> None:
    client = EtcdClient(EtcdAccess(["http://127.0.0.1:1", "http://127.0.0.1:2"]))
    with pytest.raises(StoreError) as raised:
        client.read("/v3/kv/range", {"key": "YQ=="})
    named = "http://127.0.0.1:1, http://127.0.0.1:2: connection refused: nobody listens there"
    assert str(raised.value) == f"no member of etcd answers ({named})"


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("client", "127.0.0.1")
    _, other = authority.issue("other", "127.0.0.1")

    def refused(ca: Path, key: Path) -> str:
        with pytest.raises(StoreError) as raised:
            EtcdClient(EtcdAccess(["https://127.0.0.1:1"], 1, ca, certificate, key))
        return str(raised.value)

    absent = tmp_path / "absent.pem"
    assert refused(absent, key) == f"cannot use etcd: fleet.ca, {absent}: No such file or directory"
    assert f"fleet.ca, {key}: not in PEM" in refused(key, key)
    assert f"fleet.key, {other}: the key is not the one that" in refused(authority.ca, other)
    assert f"fleet.key, {absent}: No such file" in refused(authority.ca, absent)
