#!/usr/bin/env python3
"""Follows docs/deploy.md to the letter: types every `sh` block on the hosts that its note names.

Four hosts on one switch, each with namespaces of its own (network, processes, mounts, control
groups), a root directory laid over this machine's, and on the nodes a systemd as process 1, which
runs the unit as it stands in deploy/. Nothing of the machine is changed: what the blocks write goes
to a directory that is thrown away.

    <!-- run: on 1 2 3 -->     one host after the other; `desk` is the fourth
    <!-- run: no, because … -->

`guide.py BINARY`, as root. Without root it is skipped, which is a failure in CI.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import blocks

GUIDE = "docs/deploy.md"
BLOCK_SECONDS = 120
BOOT_SECONDS = 30
# As in the guide. The prefix is wider than the guide's network: the stranger is outside it.
HOSTS = {"1": "10.77.0.1", "2": "10.77.0.2", "3": "10.77.0.3", "desk": "10.77.0.10", "stranger": "10.77.9.9"}
PREFIX = 16
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Units of this machine that are no business of a host with one service.
MASKED = """dbus.service dbus.socket getty.target systemd-udevd.service systemd-udevd-control.socket
systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-update-utmp.service systemd-logind.service
systemd-journal-flush.service systemd-random-seed.service systemd-sysctl.service systemd-modules-load.service
systemd-timesyncd.service systemd-tmpfiles-setup-dev.service systemd-networkd.service dev-hugepages.mount
dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount""".split()

# Becomes process 1 of a host. $HOST is its directory, $INIT what it runs then.
BOOT = r"""
mount --make-rprivate /
mount -t tmpfs layers "$HOST/layers"
mkdir -p "$HOST"/layers/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$HOST/layers/upper,workdir=$HOST/layers/work" "$HOST/layers/root"
cd "$HOST/layers/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
  touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
touch dev/console
mount --bind "$HOST/console" dev/console
# The disk: a real one, so that fdatasync means something.
mount --bind "$HOST/disk" var/lib
mount --bind "$HOST/home" root
rm -rf etc/wharf etc/systemd/system usr/local/bin/wharf etc/nftables.conf
mkdir -p etc/systemd/system
: > etc/fstab
: > etc/machine-id
printf '127.0.0.1 localhost\n' > etc/hosts
echo "$NAME" > etc/hostname
hostname "$NAME"
for unit in $MASKED; do ln -s /dev/null "etc/systemd/system/$unit"; done
cat > etc/systemd/system/host.target <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
UNIT
pivot_root . .
umount -l .
cd /
userdel wharf 2>/dev/null || true
touch /run/ready
exec env -i PATH="$PATH" container=guide $INIT
"""


def main() -> int:
    if os.geteuid() != 0:
        print("SKIPPED: the guide needs root, for network namespaces", file=sys.stderr)
        return 1 if os.environ.get("WHARF_CI") else 0
    binary = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="wharf-guide-") as files:
        network = Network(files, binary)
        try:
            network.build()
            follow(network)
            bad_configuration_waits(network.hosts["2"])
            print("\n(the whole guide, as typed)", flush=True)
            return 0
        except Failed as failed:
            print(f"\n{failed}", file=sys.stderr)
            network.tell()
            return 1
        finally:
            network.end()


class Failed(Exception):
    pass


def follow(network: "Network") -> None:
    firewalled = False
    for note, code in blocks.of(GUIDE):
        print(f"\n$ {code.strip()}", flush=True)
        if blocks.is_left_out(note):
            print(f"(not run: {note})", flush=True)
            continue
        if not note.startswith("on "):
            raise Failed(f"{GUIDE} says nowhere on which host to run this block")
        for name in note.removeprefix("on ").split():
            begin = time.monotonic()
            network.hosts[name].type(code)
            print(f"({name}: ok, {time.monotonic() - begin:.1f} s)", flush=True)
        if "wharf cluster status" in code and not firewalled:
            firewalled = True
            strangers_stay_outside(network)


def strangers_stay_outside(network: "Network") -> None:
    """What the guide's firewall is for: a machine next to the trusted network reaches no port."""
    for port in (7411, 7412, 7413):
        reach = f"timeout 1 bash -c '</dev/tcp/10.77.0.1/{port}'"
        network.hosts["desk" if port != 7412 else "2"].type(reach)
        network.hosts["stranger"].type(f"if {reach}; then exit 1; fi")
    print("(a stranger reaches no port)", flush=True)


def bad_configuration_waits(host: "Host") -> None:
    """What the guide says of exit status 78: systemd leaves the node alone until somebody mended it."""
    host.type("""echo 'node = 0' > /etc/wharf/wharf.toml
if systemctl restart wharf; then exit 1; fi
test "$(systemctl is-failed wharf)" = failed
test "$(systemctl show --property ExecMainStatus --value wharf)" = 78""")
    print("(a node with a bad configuration is not started again and again)", flush=True)


class Network:
    def __init__(self, files: str, binary: str):
        self.switch = f"wharf-guide-{os.getpid()}"
        self.hosts = {name: Host(name, address, files, binary) for name, address in HOSTS.items()}

    def build(self) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "up", "type", "bridge")
        for host in self.hosts.values():
            host.plug_in(self.switch)
            host.boot()
        for host in self.hosts.values():
            host.wait_booted()

    def tell(self) -> None:
        for name in ("1", "2", "3"):
            print(f"\n-- journal of host {name}", file=sys.stderr)
            self.hosts[name].run("journalctl -u wharf --no-pager -n 40; cat /var/log/wharf.log 2>/dev/null", sys.stderr)

    def end(self) -> None:
        for host in self.hosts.values():
            host.end()
        subprocess.run(["ip", "netns", "del", self.switch], check=False)


class Host:
    def __init__(self, name: str, address: str, files: str, binary: str):
        self.name, self.address, self.dir = name, address, os.path.join(files, name)
        self.netns = f"wharf-guide-{os.getpid()}-{name}"
        self.cgroup = os.path.join(cgroups(), self.netns)
        self.has_systemd = name in ("1", "2", "3")
        self.process = self.pid = None
        for folder in ("layers", "disk", "home"):
            os.makedirs(os.path.join(self.dir, folder))
        open(os.path.join(self.dir, "console"), "w").close()
        # What the guide has copied to the hosts.
        shutil.copy(binary, os.path.join(self.dir, "home", "wharf"))
        shutil.copy("deploy/systemd/wharf.service", os.path.join(self.dir, "home"))

    def plug_in(self, switch: str) -> None:
        run("ip", "netns", "add", self.netns)
        port = f"port{self.name[:6]}"
        run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", self.netns, "link", "set", "lo", "up")
        run("ip", "-n", self.netns, "address", "add", f"{self.address}/{PREFIX}", "dev", "eth0")
        run("ip", "-n", self.netns, "link", "set", "eth0", "up")

    def boot(self) -> None:
        os.makedirs(self.cgroup)
        init = "/lib/systemd/systemd --unit=host.target" if self.has_systemd else "sleep infinity"
        env = dict(PATH=PATH, HOST=self.dir, NAME=f"wharf{self.name}", INIT=init, MASKED=" ".join(MASKED))
        inside = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup",
                  "bash", "-euo", "pipefail", "-c", BOOT]
        join = 'echo $$ > "$0/cgroup.procs"; exec nsenter --net="/run/netns/$1" "${@:2}"'
        self.process = subprocess.Popen(
            ["bash", "-c", join, self.cgroup, self.netns, *inside],
            env=env, stdin=subprocess.DEVNULL, start_new_session=True,
        )

    def wait_booted(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        ready = "systemctl is-active --quiet host.target" if self.has_systemd else "test -e /run/ready"
        while time.monotonic() < end and self.process.poll() is None:
            children = open(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read().split()
            if children:
                self.pid = children[0]
                if os.path.exists(f"/proc/{self.pid}/root/run/ready") and self.run(ready) == 0:
                    return
            time.sleep(0.1)
        raise Failed(f"host {self.name} did not boot: {open(os.path.join(self.dir, 'console')).read()[-3000:]}")

    def type(self, code: str) -> None:
        exit_code = self.run(code, sys.stdout)
        if exit_code != 0:
            raise Failed(f"on host {self.name} the block failed with {exit_code}:\n{code}")

    def run(self, code: str, to=subprocess.DEVNULL) -> int:
        enter = ["nsenter", "--target", self.pid, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--wdns=/root"]
        try:
            done = subprocess.run(
                [*enter, "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", *blocks.typed(code)],
                stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.STDOUT, timeout=BLOCK_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return 124
        return done.returncode

    def end(self) -> None:
        if self.process:
            # Everything in its process namespace dies with process 1.
            if self.pid:
                os.kill(int(self.pid), signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        subprocess.run(["ip", "netns", "del", self.netns], stderr=subprocess.DEVNULL, check=False)
        for folder, _, _ in os.walk(self.cgroup, topdown=False):
            remove_cgroup(folder)


def remove_cgroup(folder: str) -> None:
    """Its processes were killed; the kernel may still be at it."""
    end = time.monotonic() + 5
    while True:
        try:
            return os.rmdir(folder)
        except OSError as error:
            if time.monotonic() > end:
                print(f"{folder} stays: {error}", file=sys.stderr)
                return
            time.sleep(0.05)


def cgroups() -> str:
    """Where this machine has control groups of the second version."""
    for line in open("/proc/mounts"):
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return place
    raise SystemExit("no control groups (cgroup2): systemd cannot run")


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
