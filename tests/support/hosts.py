"""Hosts of a cluster, simulated with namespaces on this machine.

    with Hosts(directory, {"head": "10.77.0.2", "worker": "10.77.0.3"}) as hosts:
        hosts.run("ray up --yes cluster.yaml")   # on a separate machine of the user

Each has its own processes, network, SSH server, home, /tmp and /dev/shm, sees this machine's files, and cannot reach
the outside. All belong to the namespaces of one process: when it or this process ends, the kernel ends everything in
them and removes their network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).parents[2]
TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("net", "pid", "mount", "uts", "ipc")

# A private /tmp, /run, /dev/shm and home; the paths in $@ stay visible.
PRIVATE = """
set -euo pipefail
own() {  # NAME HOME KEEP...
  local home=$2 kept=() stage
  hostname "$1"; shift 2
  mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /run/kept
  for path in "$@"; do
    mkdir "/run/kept/${#kept[@]}"; mount --bind "$path" "/run/kept/${#kept[@]}"; kept+=("$path")
  done
  mount -t tmpfs tmpfs /tmp; chmod 1777 /tmp
  mount -t tmpfs tmpfs /dev/shm; chmod 1777 /dev/shm
  for stage in "${!kept[@]}"; do mkdir -p "${kept[stage]}"; mount --bind "/run/kept/$stage" "${kept[stage]}"; done
  sed "s|^root:.*|root:x:0:0:root:$home:/bin/bash|" /etc/passwd > /run/passwd; mount --bind /run/passwd /etc/passwd
  printf '127.0.0.1 localhost\\n%s %s\\n' "$ADDRESS" "$(hostname)" > /run/hosts; mount --bind /run/hosts /etc/hosts
  mount --bind /dev/null /etc/resolv.conf   # there is no name server
  ip link set lo up
}
"""
HOST = (
    PRIVATE
    + """
own "$@"
until ip link set eth0 up 2>/dev/null; do sleep 0.05; done
ip address add "$ADDRESS/24" dev eth0
ip route add default via "$GATEWAY"   # Ray uses the source address of the default route
/usr/sbin/sshd -D -e -f /dev/null -h "$KEYS/host" -o UsePAM=no -o StrictModes=no -o PermitRootLogin=prohibit-password \\
  -o PasswordAuthentication=no -o AuthorizedKeysFile="$KEYS/user.pub" -o PidFile=none -o MaxStartups=100 \\
  -o PrintMotd=no 2>"$KEYS/$1.log" &
while wait -n; do :; done
"""
)
USER = (
    PRIVATE
    + """
own "$@"
ip link add lan type bridge; ip address add "$GATEWAY/24" dev lan; ip link set lan up
here=$(readlink /proc/self/ns/net)
while read -r name address home; do
  ADDRESS=$address unshare {flags} bash "$HOST" "$name" "$home" "${@:3}" </dev/null &
  until theirs=$(readlink "/proc/$!/ns/net") && [ "$theirs" != "$here" ]; do sleep 0.02; done
  ip link add "to-$name" type veth peer name eth0 netns $!; ip link set "to-$name" master lan up
done <<< "$HOSTS"
while read -r name address home; do
  tries=0
  until (echo > "/dev/tcp/$address/22") 2>/dev/null; do sleep 0.05; [ $((++tries)) -lt 600 ]; done
done <<< "$HOSTS"
echo ready
while wait -n; do :; done
"""
)


def missing() -> str | None:
    """Return why hosts cannot run here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces require root on Linux"
    not_found = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if not_found:
        return f"not installed: {', '.join(not_found)}"
    probe = subprocess.run(
        ["unshare", *_flags(), "ip", "link", "add", "lan", "type", "bridge"], capture_output=True, text=True
    )
    return f"cannot create namespaces: {probe.stderr.strip()}" if probe.returncode else None


def _flags() -> list[str]:
    return [*(f"--{name}" for name in NAMESPACES), "--fork", "--kill-child", "--mount-proc"]


class Hosts:
    """Hosts by name with their addresses, and a separate machine of the user, on which `run` runs commands."""

    def __init__(self, directory: Path, addresses: dict[str, str]) -> None:
        self.directory, self.addresses = directory, addresses
        self.key, self.shared = directory / "keys" / "user", directory / "shared"
        self._process: subprocess.Popen[str] | None = None

    def home(self, name: str) -> Path:
        return self.directory / name

    def __enter__(self) -> Hosts:
        for folder in (self.key.parent, self.shared, *map(self.home, ["user", *self.addresses])):
            folder.mkdir(parents=True)
        for name in ("user", "host"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.key.parent / name)]
            subprocess.run(words, check=True)
        host, user = self.directory / "host.sh", self.directory / "user.sh"
        host.write_text(HOST)
        user.write_text(USER.replace("{flags}", " ".join(_flags())))
        gateway = f"{next(iter(self.addresses.values())).rpartition('.')[0]}.1"
        environment = {
            "PATH": PATH,
            "ADDRESS": gateway,
            "GATEWAY": gateway,
            "KEYS": str(self.key.parent),
            "HOST": str(host),
            "HOSTS": "\n".join(f"{name} {address} {self.home(name)}" for name, address in self.addresses.items()),
        }
        words = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            *_flags(),
            "bash",
            str(user),
            "user",
            str(self.home("user")),
            *self._kept(),
        ]
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise RuntimeError("the hosts did not start")
        return self

    def _kept(self) -> list[str]:
        """Return the paths in /tmp and /run that hosts need: their own files, the checkout, Python."""
        paths = {self.directory, ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        return [str(path) for path in sorted(paths) if path.parts[1] in ("tmp", "run")]

    def words(self, command: str, **environment: str) -> list[str]:
        """Return the arguments that run a bash command on the user's machine, in the checkout, with this Python."""
        assert self._process is not None
        process = Path("/proc", str(self._process.pid), "ns")
        enter = [
            f"--{name}={process / file}"
            for name, file in zip(NAMESPACES, ("net", "pid_for_children", "mnt", "uts", "ipc"), strict=True)
        ]
        path = f"{sys.prefix}/bin:{PATH}"
        values = {"HOME": str(self.home("user")), "PATH": path, "TERM": "dumb", "LC_ALL": "C.UTF-8"} | environment
        return [
            "nsenter",
            *enter,
            "env",
            "-i",
            f"--chdir={ROOT}",
            *(f"{name}={value}" for name, value in values.items()),
            "bash",
            "-c",
            command,
        ]

    def run(self, command: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        words = self.words(command, **environment)
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def ssh(self, name: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a bash command on a host through SSH."""
        options = "-o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        return self.run(f"ssh -i {self.key} {options} root@{self.addresses[name]} {shlex.quote(command)}", timeout)

    def processes(self) -> list[psutil.Process]:
        """Return all processes on the hosts and on the user's machine."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.communicate()
