"""What to run: from a revision and its prepared image to the driver's `SandboxSpec`. Pure.

The environment is built from nothing: the image's variables, Lambda's list (Runtime API contract), the user's own.
Nothing of the server's environment enters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from faas.errors import ImageUnusable
from faas.oci.labels import SECRETS_READER, SECRETS_VARIABLE
from faas.oci.platform import architecture
from faas.protocol import Revision
from faas.secret import NOTHING, Given, Secret
from worker.drivers.base import NOBODY, PreparedImage, SandboxSpec

RUNTIME_API_PORT = 9001
REGION = "us-east-1"  # clients of AWS's SDKs refuse to start without one
INIT_CPUS = 1.0  # init inside a small quota takes 4 times as long (measured); Lambda gives a full core too
CPU_FLOOR = 0.07  # 128 MB's share
PIDS = 256  # threads count
OPEN_FILES = 1024
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UID_MAX = 2**31 - 2  # above it some runtimes wrap around to root (CVE-2024-40635)
TEXT_BYTES = 131_072  # one argument or variable (execve(2), MAX_ARG_STRLEN)
TOTAL_BYTES = 1_048_576  # all of them: half of the kernel's bound
DEFAULTS = {  # of the environment: the image's and the user's variables win
    "PATH": PATH,
    "HOME": "/tmp",  # noqa: S108 - the only folder that can be written
    "LANG": "C.UTF-8",
    "TZ": ":UTC",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "LAMBDA_TASK_ROOT": "/var/task",
    "LAMBDA_RUNTIME_DIR": "/var/runtime",
    "FAAS_CONNECTIONS_URL": f"http://127.0.0.1:{RUNTIME_API_PORT}",  # `worker.push_door`
}
REFUSED_FOLDERS = ("/proc", "/sys", "/dev")  # how runc's leaked descriptors were reached (CVE-2024-21626)


def label(revision: Revision) -> str:
    """The function's name in metrics and labels: `hello`, outside `default` `hello.team`."""
    return label_of(revision.key.namespace, revision.key.function)


def label_of(namespace: str, function: str) -> str:
    return function if namespace == "default" else f"{function}.{namespace}"


def sandbox_spec(
    revision: Revision,
    image: PreparedImage,
    instance_id: str,
    *,
    now: float,
    secrets: Mapping[str, Secret] = NOTHING.values,
) -> SandboxSpec:
    """The sandbox of one instance; `now` is Unix time, `secrets` the values of those that the revision names. Raises
    ImageUnusable that names what cannot be run."""
    spec, config = revision.spec, image.config
    if config.os != "linux" or config.architecture not in ("", architecture()):
        raise ImageUnusable(
            f"the image is for {config.os}/{config.architecture}; this machine is linux/{architecture()}",
            hint=f"build it for linux/{architecture()}",
        )
    args = command_line(revision, image)
    env = environment(revision, image, instance_id, now=now)
    given = _given(revision, image, args, secrets, env)
    _check_sizes(args, {**env, **given.environment()})
    return SandboxSpec(
        id=instance_id,
        image=image,
        args=args,
        env=env,
        workdir=working_folder(revision, image),
        memory_bytes=spec.memory_bytes,
        cpus=max(INIT_CPUS, spec.cpus),
        tmp_bytes=spec.ephemeral_storage * 1024 * 1024,
        user=user(config.user),
        pids=PIDS,
        open_files=OPEN_FILES,
        writable_root=spec.writable_root,
        network=spec.network,
        labels={
            "faas.function": revision.key.function,
            "faas.namespace": revision.key.namespace,
            "faas.revision": str(revision.key.number),
        },
        secrets=given,
    )


def _given(
    revision: Revision, image: PreparedImage, args: tuple[str, ...], secrets: Mapping[str, Secret], env: dict[str, str]
) -> Given:
    """Where the runtime's client takes variables from the files by itself, it is told their names in `env`, and no
    process is started with a value in its environment."""
    variables = revision.spec.secrets
    if not variables:
        return NOTHING
    for variable in variables:
        env.pop(variable, None)  # the image's
    reader = image.config.labels.get(SECRETS_READER)
    if reader and reader in args:
        env[SECRETS_VARIABLE] = ",".join(f"{variable}={name}" for variable, name in variables.items())
        return Given(secrets, {})
    return Given(secrets, variables)


def cpus(revision: Revision) -> float:
    """The share after init."""
    return max(CPU_FLOOR, revision.spec.cpus)


def command_line(revision: Revision, image: PreparedImage) -> tuple[str, ...]:
    """The spec's entrypoint replaces the image's with its command, as `docker run --entrypoint` does."""
    spec, config = revision.spec, image.config
    entrypoint = spec.entrypoint or config.entrypoint
    command = spec.command if spec.entrypoint else spec.command or config.cmd
    args = (*entrypoint, *command)
    if not args or not args[0]:
        raise ImageUnusable(
            "the image says nothing to run: it has neither an entry point nor a command",
            hint='add ENTRYPOINT or CMD to the image, or pass command = ["…"]',
        )
    return args


def environment(revision: Revision, image: PreparedImage, instance_id: str, *, now: float) -> dict[str, str]:
    """Weakest first: defaults, the image's, the user's; last what the contract with the container rests on."""
    spec, key = revision.spec, revision.key
    env = dict(DEFAULTS)
    variables = (variable.partition("=")[::2] for variable in image.config.env)
    env.update({name: value for name, value in variables if name})  # without a name the runtime refuses it
    env.update(spec.env)
    day = time.strftime("%Y/%m/%d", time.gmtime(now))
    env.update(
        {
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{RUNTIME_API_PORT}",
            "PORT": str(spec.port),
            "AWS_LAMBDA_FUNCTION_NAME": key.function,
            "AWS_LAMBDA_FUNCTION_VERSION": str(key.number),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{label(revision)}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"{day}/[{key.number}]{instance_id}",
            "AWS_LAMBDA_LOG_FORMAT": "Text",
            "FAAS_FUNCTION": key.function,
            "FAAS_NAMESPACE": key.namespace,
            "FAAS_REVISION": str(key.number),
            "FAAS_INSTANCE": instance_id,
            "FAAS_CONCURRENCY": str(spec.concurrency),
        }
    )
    if spec.runtime:
        env["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{spec.runtime}"
    if spec.handler:
        env["_HANDLER"] = spec.handler
    return env


def working_folder(revision: Revision, image: PreparedImage) -> str:
    folder = revision.spec.workdir or image.config.workdir or "/"
    if not folder.startswith("/"):
        folder = "/" + folder
    parts = folder.split("/")
    if ".." in parts or "\x00" in folder or f"/{next(filter(None, parts), '')}" in REFUSED_FOLDERS:
        raise ImageUnusable(
            f"the working directory {folder!r} is refused: it must be outside /proc, /sys and /dev, without ..",
            hint='pass workdir = "/…"',
        )
    return folder


def user(written: str) -> tuple[int, int]:
    """(uid, gid): the image's USER where it is numeric and not root, else nobody.

    Names are not looked up: the image's passwd file is its author's, of any size. Raises ImageUnusable on a number
    that is no user.
    """
    name, _, group = written.partition(":")
    if not (name.isascii() and name.isdigit()):
        return NOBODY, NOBODY
    uid = _id(written, name)
    if uid == 0:
        return NOBODY, NOBODY
    gid = _id(written, group) if group.isascii() and group.isdigit() else uid
    return uid, gid or NOBODY


def user_warning(written: str) -> str:
    """What a deploy should be told about the image's USER; empty where it is kept."""
    name = written.partition(":")[0]
    if not written or user(written) != (NOBODY, NOBODY) or name == str(NOBODY):
        return ""
    return f"the image's USER {written!r} is root or not numeric: the function runs as {NOBODY} (nobody) instead"


def _id(written: str, number: str) -> int:
    if len(number) > 10 or int(number) > UID_MAX:
        raise ImageUnusable(f"the image's USER {written[:64]!r} is not a user", hint=f"use 1 to {UID_MAX}")
    return int(number)


def _check_sizes(args: tuple[str, ...], env: dict[str, str]) -> None:
    texts = [*args, *(f"{name}={value}" for name, value in env.items())]
    sizes = [len(text.encode("utf-8", "surrogatepass")) + 1 for text in texts]
    if max(sizes) > TEXT_BYTES or sum(sizes) > TOTAL_BYTES:
        raise ImageUnusable(
            f"the image's command and environment are too large: at most {TEXT_BYTES} bytes each, {TOTAL_BYTES} in all"
        )
