"""What `jvpn doctor` looks at on the host, whatever the configuration says. Nothing is changed by looking."""

import ctypes
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fcntl import ioctl
from importlib import metadata, util
from pathlib import Path
from typing import Final, Literal

from jvpn import compiled
from jvpn.holder import headers
from jvpn.holder.bpffs import is_bpffs
from jvpn.holder.loader import bpf_privileged
from jvpn.supervisor.steering import cpumap_supported
from workers import bulk

Level = Literal["ok", "warning", "problem"]

CAP_NET_ADMIN: Final = 12
MIN_BPF_KERNEL: Final = (5, 10)
USO_KERNEL: Final = (6, 2)
MIN_CRYPTOGRAPHY: Final = 50
_TUNGETFEATURES: Final = 0x800454CF
_IFF_MULTI_QUEUE, _IFF_VNET_HDR = 0x0100, 0x4000
_UDP_OPTIONS: Final = {"GSO": 103, "GRO": 104}
_STA_UNSYNC: Final = 0x0040
#: Before this the clock was never set.
_EARLIEST_S: Final = 1_735_689_600


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found, and what to do about it when it is not well.

    `blocks_bpf`: the gateway falls to the last step of the ladder because of it.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""
    blocks_bpf: bool = False


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 1) of "6.1.0-56-amd64"; (0, 0) when it does not begin with two numbers."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def base_checks() -> list[Check]:
    """What gateway and client both need."""
    return [privileges(), tun_device(), udp_offload(), kernel(os.uname().release), *crypto(), clock()]


def bpf_checks() -> list[Check]:
    """What a gateway needs to load its programs; each missing one costs the ladder's first three steps."""
    return [bpf_privilege(), bcc_module(), kernel_headers(), bpffs()]


def _capable(capability: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> capability & 1)


def privileges() -> Check:
    if os.geteuid() != 0:
        return Check("privileges", "problem", f"user id {os.geteuid()}", "start as root")
    if not _capable(CAP_NET_ADMIN):
        remedy = "start the container with CAP_NET_ADMIN"
        return Check("privileges", "problem", "root without CAP_NET_ADMIN: no TUN, no addresses", remedy)
    return Check("privileges", "ok", "root with CAP_NET_ADMIN")


def tun_device() -> Check:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "load the module (modprobe tun), or give the container /dev/net/tun"
        return Check("TUN", "problem", f"/dev/net/tun: {error.strerror}", remedy)
    try:
        features = int.from_bytes(ioctl(descriptor, _TUNGETFEATURES, bytes(4)), sys.byteorder)
    except OSError as error:
        return Check("TUN", "problem", f"/dev/net/tun: {error.strerror}", "use a kernel with CONFIG_TUN")
    finally:
        os.close(descriptor)
    remedy = "use a Linux kernel of 5.10 or later"
    if not features & _IFF_MULTI_QUEUE:
        return Check("TUN", "problem", "no multi-queue", remedy)
    if not features & _IFF_VNET_HDR:
        return Check("TUN", "warning", "no virtio headers: every packet costs a system call", remedy)
    return Check("TUN", "ok", "/dev/net/tun opens, multi-queue, virtio headers")


def udp_offload() -> Check:
    """Tries the options on a socket that is bound to nothing; IPv6, as every socket of the product is."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            missing = [name for name, option in _UDP_OPTIONS.items() if not _takes(probe, option)]
    except OSError as error:
        remedy = "start the kernel without ipv6.disable=1: the sockets are IPv6 ones, for IPv4 too"
        return Check("UDP sockets", "problem", f"no IPv6 socket: {error.strerror}", remedy)
    if missing:
        found = f"UDP {' and '.join(missing)} refused: every datagram costs a system call"
        return Check("UDP sockets", "warning", found, "use a Linux kernel of 5.0 or later")
    return Check("UDP sockets", "ok", "dual-stack, with GSO and GRO")


def _takes(probe: socket.socket, option: int) -> bool:
    try:
        probe.setsockopt(socket.IPPROTO_UDP, option, 1)
    except OSError:
        return False
    return True


def kernel(release: str) -> Check:
    """What follows from the kernel's version."""
    version = kernel_version(release)
    if version < MIN_BPF_KERNEL:
        found, remedy = f"Linux {release}: too old for the BPF programs", "use 5.10 or later"
        return Check("kernel", "warning", found, remedy, blocks_bpf=True)
    uso = (
        "UDP superpackets into the TUN" if version >= USO_KERNEL else "no UDP superpackets into the TUN (6.2)"
    )
    cpumap = "GRO behind a cpumap" if cpumap_supported(release) else "no GRO behind a cpumap (6.15): not used"
    return Check("kernel", "ok", f"Linux {release}: {uso}, {cpumap}")


def crypto() -> list[Check]:
    """The library's version, what is quicker than Python, and which suite this processor does well."""
    version = metadata.version("cryptography")
    if int(version.partition(".")[0]) < MIN_CRYPTOGRAPHY:
        remedy = f"pip install 'cryptography>={MIN_CRYPTOGRAPHY}' into the virtual environment"
        library = Check("cryptography", "problem", f"version {version} cannot encrypt in place", remedy)
    else:
        library = Check("cryptography", "ok", f"version {version}")
    return [library, bulk_crypto(), compiled_modules(), processor(Path("/proc/cpuinfo").read_text())]


def bulk_crypto() -> Check:
    """Whether workers have the library for whole runs, and if not, why. They work without it."""
    found = bulk.look()
    if isinstance(found, bulk.Unusable):
        level: Level = "warning" if found.remedy else "ok"
        return Check("libipsec-mb", level, f"not used: {found.why}", found.remedy)
    return Check("libipsec-mb", "ok", "version 1.3, agrees with cryptography: whole runs in one call")


def compiled_modules() -> Check:
    """Whether the data plane's busiest modules run as machine code, and if not, why. They do the same without."""
    found = compiled.look()
    if isinstance(found, compiled.Interpreted):
        level: Level = "warning" if found.remedy else "ok"
        return Check("data plane", level, f"interpreted: {found.why}", found.remedy)
    return Check("data plane", "ok", "compiled from these sources")


def processor(cpuinfo: str) -> Check:
    """Suite advice; `cpuinfo` is the text of /proc/cpuinfo."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if flags is None:
        return Check("processor", "ok", "flags not shown: try suite 1 (AES-256-GCM) and suite 2")
    if "aes" in flags[1].split():
        return Check("processor", "ok", "AES instructions: suite 1 (AES-256-GCM) suits")
    found = "no AES instructions: AES-256-GCM is slow here"
    return Check("processor", "warning", found, "write suite: 2 (ChaCha20-Poly1305) in the clients' files")


def clock() -> Check:
    """Handshake timestamps must rise and stored sessions expire by wall time."""
    if time.time() < _EARLIEST_S:
        remedy = "set the clock (date -s), or run an NTP client"
        return Check("clock", "problem", f"{time.strftime('%F')} lies in the past", remedy)
    # struct timex, with modes 0: read only. `status` follows four longs and an int, padded.
    buffer = (ctypes.c_long * 64)()
    ctypes.CDLL(None).adjtimex(buffer)
    if ctypes.c_int.from_buffer(buffer, 5 * ctypes.sizeof(ctypes.c_long)).value & _STA_UNSYNC:
        remedy = "run an NTP client (chrony, systemd-timesyncd); sessions outlive a restart by wall time"
        return Check(
            "clock", "warning", f"{time.strftime('%F %T')}, not synchronised as far as known", remedy
        )
    return Check("clock", "ok", f"{time.strftime('%F %T')}, synchronised")


def bpf_privilege() -> Check:
    if not bpf_privileged():
        remedy = "start as root with CAP_SYS_ADMIN"
        return Check("BPF privilege", "warning", "no CAP_SYS_ADMIN: nothing can be loaded", remedy, True)
    return Check("BPF privilege", "ok", "CAP_SYS_ADMIN")


def bcc_module() -> Check:
    """Found, not imported: importing it brings LLVM into memory."""
    remedy = "apt-get install python3-bpfcc, and make the environment with --system-site-packages"
    spec = util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return Check("bcc", "warning", "no module named bcc", remedy, blocks_bpf=True)
    if not (Path(spec.origin).parent / "libbcc.py").is_file():
        found = f"{spec.origin} is the crystallography package of that name on PyPI"
        return Check("bcc", "warning", found, "pip uninstall bcc; " + remedy, blocks_bpf=True)
    debian = "/dist-packages/" in spec.origin
    return Check("bcc", "ok", f"{'python3-bpfcc' if debian else 'BPF Compiler Collection'} ({spec.origin})")


def kernel_headers() -> Check:
    try:
        # A cache of our own, so that nothing stays behind.
        with tempfile.TemporaryDirectory(prefix="jvpn-doctor-") as scratch:
            tree = headers.find(Path(scratch))
            name = "" if tree is None else tree.name.replace("kernel-headers-", "linux-headers-")
            found = str(tree) if tree is not None and tree.is_dir() and tree.name == "build" else name
    except OSError as error:
        return Check("kernel headers", "warning", str(error), "make room in the temporary directory", True)
    if tree is None:
        if Path("/sys/kernel/kheaders.tar.xz").exists():
            return Check("kernel headers", "ok", "/sys/kernel/kheaders.tar.xz")
        return Check("kernel headers", "warning", "none are installed", headers.remedy(), True)
    if os.uname().release not in found:
        found += f", for another kernel than {os.uname().release}; the programs need stable definitions only"
    return Check("kernel headers", "ok", found)


def bpffs() -> Check:
    if is_bpffs(Path("/sys/fs/bpf")):
        return Check("bpffs", "ok", "mounted on /sys/fs/bpf")
    if "\tbpf\n" not in Path("/proc/filesystems").read_text():
        remedy = "use a kernel with CONFIG_BPF_SYSCALL"
        return Check("bpffs", "warning", "the kernel has no BPF file system", remedy, blocks_bpf=True)
    return Check("bpffs", "ok", "not mounted on /sys/fs/bpf; the gateway mounts it there or in its run_dir")


def load_programs() -> Check:
    """Compile the programs, have the kernel verify them and pin them, in a mount namespace that ends with the loader:
    its bpffs, pins and programs go with it. What it compiled and the merged header tree stay in /var/cache/jvpn."""
    with tempfile.TemporaryDirectory(prefix="jvpn-doctor-") as scratch:
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-m",
            "jvpn.holder.loader",
        ]
        command += ["--compile", "--capacity", "64", "--pin-dir", f"{scratch}/bpf", "--run-dir", scratch]
        started = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return Check("BPF programs", "warning", f"unshare: {error.strerror}", "install util-linux", True)
    took_s = time.monotonic() - started
    if done.returncode == 0:
        found = f"compiled, verified, pinned and removed again in {took_s:.1f} s"
        return Check("BPF programs", "ok", found)
    said = (done.stdout.strip() or done.stderr.strip() or f"status {done.returncode}").splitlines()
    return Check("BPF programs", "warning", said[0], said[-1] if len(said) > 1 else "see above", True)
