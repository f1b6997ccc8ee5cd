"""Images laid out as well-known ones are, for tests: none can be pulled, so each is made here as an OCI layout.

nginx            docker.io/library/nginx, or nginxinc/nginx-unprivileged, with this machine's nginx
watchdog         an OpenFaaS template's: of-watchdog in front of a function's own HTTP server
aws_python       public.ecr.aws/lambda/python, with AWS's own runtime client from the Python index
aws_provided     public.ecr.aws/lambda/provided, with the shell bootstrap of AWS's tutorial
"""

from __future__ import annotations

import functools
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from faas.build import rootfs
from faas.build.interpreter import find_python
from faas.build.layer import Member, members, pack
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.platform import architecture

Files = Iterable[Member]


@dataclass(frozen=True)
class Layout:
    """An image in a folder (image-spec, image-layout.md)."""

    folder: Path
    digest: str

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs" / "sha256"

    def archive(self, path: Path) -> Path:
        with tarfile.open(path, "w") as tar:
            tar.add(self.folder, ".")
        return path


def layout(folder: Path, layers: Iterable[Callable[[Path], Files]], **config: object) -> Layout:
    """Gzipped layers, each from its files; `config` are `ImageConfig`'s fields."""
    blobs = Layout(folder, "").blobs
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    diff_ids, descriptors = [], []
    for number, files in enumerate(layers):
        with tempfile.TemporaryDirectory() as name:
            by_name = {member.name: member for member in files(Path(name))}  # of two, the later one
            layer = pack(by_name.values(), Path(name) / "layer.tar", str(number))
            compressed = gzip.compress(layer.path.read_bytes(), 1, mtime=0)
        diff_ids.append(layer.digest)
        descriptors.append(blob(compressed, media_types.OCI_LAYER_GZIP))
    image = ImageConfig(architecture(), diff_ids=tuple(diff_ids), **config)  # type: ignore[arg-type]
    manifest = Manifest.image(blob(image.to_json(), media_types.OCI_CONFIG), descriptors)
    listed = blob(manifest.raw, manifest.media_type).to_json()
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Layout(folder, str(manifest.digest))


def for_two_platforms(image: Layout) -> Layout:
    """The same layout with an index as a builder pushes it: another machine's image, an attestation, and this one."""
    own = (image.blobs / image.digest.partition(":")[2]).read_bytes()
    rows = []
    for system, machine in (("linux", "s390x"), ("unknown", "unknown"), ("linux", architecture())):
        raw = (
            own
            if machine == architecture()
            else own.replace(b"{", b'{"annotations":{"for":"%s"},' % machine.encode(), 1)
        )
        digest = Digest.of(raw)
        (image.blobs / digest.hex).write_bytes(raw)
        row = Descriptor(media_types.OCI_MANIFEST, digest, len(raw)).to_json()
        rows.append({**row, "platform": {"os": system, "architecture": machine}})
    index = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": rows}).encode()
    digest = Digest.of(index)
    (image.blobs / digest.hex).write_bytes(index)
    listed = Descriptor(media_types.OCI_INDEX, digest, len(index)).to_json()
    (image.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    return Layout(image.folder, str(digest))


def text(name: str, content: str, *, executable: bool = False) -> Member:
    return Member(name, content=content.encode(), executable=executable)


def programs(work: Path, *names: str) -> list[Member]:
    """These programs of this machine at their usual places, with the libraries they need."""
    found = {name: shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin") for name in names}
    missing = [name for name, path in found.items() if path is None]
    assert not missing, f"this machine lacks {missing}"
    places = {f"usr/bin/{name}": Path(path or "").resolve() for name, path in found.items()}
    return rootfs.with_libraries(places | rootfs.shell(), work)


@functools.cache
def compiled(name: str) -> bytes:
    """tests/support/NAME.c as a static program."""
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / name
        subprocess.run(["gcc", "-D_GNU_SOURCE", "-static", "-O1", "-Wall", "-o", target, source], check=True)
        return target.read_bytes()


def program(name: str, source: str) -> Member:
    return Member(name, content=compiled(source), executable=True)


def with_users(*lines: str) -> list[Member]:
    """The folders and files of a plain system, and these users beside root."""
    passwd = "\n".join(("root:x:0:0:root:/root:/bin/sh", *lines, ""))
    return [*rootfs.system(), text("etc/passwd", passwd), Member("var/run", link="/run")]


def web(folder: Path) -> Layout:
    """One static program: tests/support/web.c."""
    files = [program("web", "web")]
    return layout(folder, [lambda _: files], entrypoint=("/web",), env=("GREETING=from the image",))


NGINX_ENTRYPOINT = """#!/bin/sh
set -e
if [ "$1" = nginx ]; then
    find /docker-entrypoint.d/ -follow -type f | sort -V | while read -r script; do
        if [ -x "$script" ]; then
            echo "$0: Launching $script"
            "$script"
        fi
    done
fi
exec "$@"
"""
NGINX_IPV6 = """#!/bin/sh
set -e
conf=/etc/nginx/conf.d/default.conf
[ -f /proc/net/if_inet6 ] || exit 0
touch $conf 2>/dev/null || { echo "$0: info: can not modify $conf (read-only file system?)"; exit 0; }
sed -i 's,listen       80;,listen       80;\\n    listen  [::]:80;,' $conf
echo "$0: info: enabled listen on IPv6 in $conf"
"""
# The temporary folders are those that nginx.org's build, which is in the official image, has compiled in.
NGINX_CONF = """user  nginx;
worker_processes  auto;
error_log  /var/log/nginx/error.log notice;
pid        /var/run/nginx.pid;
events { worker_connections  1024; }
http {
    include       /etc/nginx/mime.types;
    default_type  application/octet-stream;
    access_log  /var/log/nginx/access.log;
    sendfile        on;
    keepalive_timeout  65;
    client_body_temp_path /var/cache/nginx/client_temp;
    proxy_temp_path       /var/cache/nginx/proxy_temp;
    fastcgi_temp_path     /var/cache/nginx/fastcgi_temp;
    uwsgi_temp_path       /var/cache/nginx/uwsgi_temp;
    scgi_temp_path        /var/cache/nginx/scgi_temp;
    include /etc/nginx/conf.d/*.conf;
}
"""
NGINX_DEFAULT = """server {
    listen       80;
    server_name  localhost;
    location / {
        root   /usr/share/nginx/html;
        index  index.html index.htm;
    }
}
"""


def nginx(folder: Path, pages: dict[str, bytes], *, unprivileged: bool = False) -> Layout:
    """`pages`: files below /usr/share/nginx/html."""
    conf, default, port = NGINX_CONF, NGINX_DEFAULT, 80
    if unprivileged:
        for old, new in (("user  nginx;\n", ""), ("/var/run/", "/tmp/"), ("/var/cache/nginx/", "/tmp/")):
            conf = conf.replace(old, new)
        default, port = default.replace("80;", "8080;"), 8080

    def system(work: Path) -> Files:
        users = with_users("nginx:x:101:101:nginx user:/nonexistent:/bin/false")
        return [*users, *programs(work, "nginx", "find", "sort", "sed", "touch")]

    def files(_: Path) -> Files:
        return [
            text("docker-entrypoint.sh", NGINX_ENTRYPOINT, executable=True),
            text("docker-entrypoint.d/10-listen-on-ipv6-by-default.sh", NGINX_IPV6, executable=True),
            text("etc/nginx/nginx.conf", conf),
            text("etc/nginx/conf.d/default.conf", default),
            Member("etc/nginx/mime.types", source=Path("/etc/nginx/mime.types")),
            Member("var/cache/nginx"),
            Member("var/lib/nginx"),
            Member("var/log/nginx/access.log", link="/dev/stdout"),
            Member("var/log/nginx/error.log", link="/dev/stderr"),
            *(Member(f"usr/share/nginx/html/{name}", content=data) for name, data in pages.items()),
        ]

    return layout(
        folder,
        [system, files],
        entrypoint=("/docker-entrypoint.sh",),
        cmd=("nginx", "-g", "daemon off;"),
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NGINX_VERSION=1"),
        exposed_ports=(f"{port}/tcp",),
        user="101" if unprivileged else "",
    )


def watchdog(folder: Path, user: str) -> Layout:
    """As OpenFaaS's node and python3-http templates build it."""

    def files(_: Path) -> Files:
        return [
            *with_users("app:x:100:101:app:/home/app:/sbin/nologin"),
            program("usr/bin/fwatchdog", "watchdog"),
            program("home/app/function", "web"),
        ]

    env = ("mode=http", "fprocess=/home/app/function 3000", "upstream_url=http://127.0.0.1:3000", "exec_timeout=10s")
    return layout(
        folder,
        [files],
        cmd=("fwatchdog",),
        env=("PATH=/usr/local/bin:/usr/bin:/bin", *env),
        workdir="/home/app",
        user=user,
        exposed_ports=("8080/tcp",),
    )


AWS_ENTRYPOINT = """#!/bin/sh
if [ $# -ne 1 ]; then
  echo "the handler's name must be the first and only argument" 1>&2
  exit 142
fi
export _HANDLER="$1"
if [ -z "${AWS_LAMBDA_RUNTIME_API}" ]; then
  exec /usr/local/bin/aws-lambda-rie /var/runtime/bootstrap
else
  exec /var/runtime/bootstrap
fi
"""
AWS_EMULATOR = "#!/bin/sh\necho the emulator was started\nexit 1\n"
AWS_PYTHON = """#!/bin/sh
export AWS_EXECUTION_ENV=AWS_Lambda_python
exec /var/lang/bin/python3 /var/runtime/bootstrap.py
"""
AWS_PYTHON_MAIN = """import os
import sys

sys.path.insert(0, os.environ["LAMBDA_RUNTIME_DIR"])
sys.path.insert(0, os.environ["LAMBDA_TASK_ROOT"])
from awslambdaric.__main__ import main

main([os.environ["LAMBDA_TASK_ROOT"], os.environ["_HANDLER"]])
"""
AWS_SHELL = """#!/bin/sh
set -eu
. "$LAMBDA_TASK_ROOT/$(echo "$_HANDLER" | cut -d. -f1).sh"
api="http://${AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime/invocation"
while true; do
  HEADERS="$(mktemp)"
  EVENT_DATA=$(curl -sS -LD "$HEADERS" "$api/next")
  REQUEST_ID=$(grep -Fi Lambda-Runtime-Aws-Request-Id "$HEADERS" | tr -d '[:space:]' | cut -d: -f2)
  RESPONSE=$("$(echo "$_HANDLER" | cut -d. -f2)" "$EVENT_DATA")
  curl -sS "$api/$REQUEST_ID/response" -d "$RESPONSE"
done
"""
AWS_ENV = (
    "LANG=en_US.UTF-8",
    "TZ=:/etc/localtime",
    "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
    "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    "LAMBDA_TASK_ROOT=/var/task",
    "LAMBDA_RUNTIME_DIR=/var/runtime",
)


def _aws(folder: Path, layers: list[Callable[[Path], Files]], command: str, code: Member) -> Layout:
    shared = [
        text("lambda-entrypoint.sh", AWS_ENTRYPOINT, executable=True),
        text("usr/local/bin/aws-lambda-rie", AWS_EMULATOR, executable=True),
    ]
    return layout(
        folder,
        [lambda work: [*rootfs.system(), *layers[0](work)], *layers[1:], lambda _: shared, lambda _: [code]],
        entrypoint=("/lambda-entrypoint.sh",),
        cmd=(command,),
        env=AWS_ENV,
        workdir="/var/task",
    )


def aws_python(folder: Path, code: str) -> Layout:
    """`code` is app.py; `FROM public.ecr.aws/lambda/python`, `COPY app.py`, `CMD ["app.handler"]`."""
    python = find_python()

    def runtime(work: Path) -> Files:
        target = work / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
        subprocess.run([*pip, "--no-compile", "--target", target, "awslambdaric"], check=True)
        return [
            *members(target, "var/runtime", ("bin", "__pycache__")),
            text("var/runtime/bootstrap", AWS_PYTHON, executable=True),
            text("var/runtime/bootstrap.py", AWS_PYTHON_MAIN),
            Member("var/lang/bin/python3", link=f"/usr/bin/python{python.version}"),
        ]

    interpreter = functools.partial(rootfs.python_files, python)
    return _aws(folder, [interpreter, runtime], "app.handler", text("var/task/app.py", code))


def aws_provided(folder: Path, code: str) -> Layout:
    """`code` is function.sh, with a function `handler`."""

    def runtime(work: Path) -> Files:
        bootstrap = text("var/runtime/bootstrap", AWS_SHELL, executable=True)
        return [*programs(work, "curl", "cut", "grep", "mktemp", "tr"), bootstrap]

    return _aws(folder, [runtime], "function.handler", text("var/task/function.sh", code))
