"""The server's settings: read once, from flag > environment > DIR/config.toml > default, into one frozen value.

The only module that reads `os.environ`. `faas config` shows every value with the place that it came from.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from faas.errors import InvalidInput
from faas.processes import check_processes
from faas.proxies import TrustedProxies

ENV_PREFIX = "FAAS_"
BANDWIDTH_MOST = 100_000  # Mbit/s
STEMS_MOST = 32  # per runtime: each holds about 15 MB and a network of its own
PRECREATED_MOST = 8  # per revision: each holds about 4 MB and a network of its own
MEMORY_BUDGET_LEAST = 128  # MB: the smallest function's
MAX_CONCURRENCY_MOST = 100_000
CONNECTIONS_MOST = 1_000_000
WHOLE = frozenset(
    {
        "processes", "memory_budget", "bandwidth", "stems", "precreated", "max_concurrency", "burst",
        "connections_per_address",
    }
)  # fmt: skip
BURST_MOST = 1000  # no function has more instances


@dataclass(frozen=True, slots=True)
class Address:
    """`host:port`; an IPv6 host is written in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65_535:
            raise ValueError("HOST:PORT")
        return cls(host.strip("[]") or "0.0.0.0", int(port))  # noqa: S104 - what the user wrote: ":8080"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside. Help texts double as the documentation's table."""

    data: Path = field(metadata={"help": "folder for everything the server keeps"})
    listen: Address = field(metadata={"help": "public listener: functions", "default": "127.0.0.1:8080"})
    api_listen: Address = field(
        metadata={"help": "API listener: control, metrics, health", "default": "127.0.0.1:8081"}
    )
    registry_listen: Address = field(metadata={"help": "registry listener", "default": "127.0.0.1:5000"})
    driver: str = field(metadata={"help": "auto | oci | docker", "default": "auto"})
    database_url: str = field(metadata={"help": "the gateway's database; empty: DIR/faas.db (SQLite)", "default": ""})
    public_url: str = field(metadata={"help": "how others reach the public listener", "default": ""})
    domain: str = field(metadata={"help": "functions also answer at {name}.DOMAIN", "default": ""})
    tls_cert: str = field(metadata={"help": "certificate (PEM) for all three listeners", "default": ""})
    tls_key: str = field(metadata={"help": "its key (PEM)", "default": ""})
    processes: int = field(
        metadata={"help": "processes that serve the public port; without TLS, twice the CPUs at most", "default": 1}
    )
    log_format: str = field(metadata={"help": "text | json", "default": "text"})
    insecure: bool = field(metadata={"help": "allow listening beyond loopback without TLS", "default": False})
    registry_auth: str = field(metadata={"help": "basic | token | none (none on loopback only)", "default": "basic"})
    registry_upstreams: str = field(
        metadata={
            "help": "registries to keep copies of: NAME=URL[,auth=URL][,user=U,password-file=F][,expire=24h] …",
            "default": "",
        }
    )
    oci_runtime: str = field(
        metadata={"help": "runtime program of the oci driver; empty: runc, or crun on cgroup v2", "default": ""}
    )
    subnet: str = field(
        metadata={"help": "IPv4 range for instances; empty: one chosen from 100.64.0.0/10", "default": ""}
    )
    bandwidth: int = field(
        metadata={
            "help": "Mbit/s, each way, of an instance with 1769 MB; less memory, less of it (oci driver); 0 = no limit",
            "default": 1000,
        }
    )
    user: str = field(
        metadata={
            "help": "account that the server gives root up for (oci driver); empty: faas, else the number 60910; "
            "root: it keeps root",
            "default": "",
        }
    )
    stems: int = field(
        metadata={
            "help": "started runtimes that wait for a function, per runtime: first answers in a few ms (oci driver); "
            "0 = none",
            "default": 2,
        }
    )
    precreated: int = field(
        metadata={
            "help": "sandboxes made ahead for each revision that no stem serves and that is likely to scale; 0 = none",
            "default": 1,
        }
    )
    trigger_roots: str = field(
        metadata={"help": "folders, colon-separated, below which functions may watch folders", "default": "/srv"}
    )
    memory_budget: int = field(
        metadata={
            "help": "MB for all instances together; 0: the machine's, less a tenth (512 MB at least)",
            "default": 0,
        }
    )
    max_concurrency: int = field(
        metadata={"help": "invocations of all functions together at once, reserved ones included", "default": 1000}
    )
    burst: int = field(
        metadata={
            "help": "instances that one function may start at once; a tenth of them comes back each second",
            "default": 1000,
        }
    )
    private_key_sets: bool = field(
        metadata={"help": "JWT key sets may come from this machine and its networks, by http too", "default": False}
    )
    private_notifications: bool = field(
        metadata={"help": "notifications may go to this machine and its networks, without TLS too", "default": False}
    )
    trusted_proxies: str = field(
        metadata={
            "help": "networks (10.0.0.0/8,fd00::/8) of proxies whose X-Forwarded-For, Forwarded and "
            "X-Forwarded-Proto are believed",
            "default": "",
        }
    )
    connections_per_address: int = field(
        metadata={
            "help": "open connections of one client address to each listener, beyond loopback and trusted_proxies; "
            "0 = any number",
            "default": 256,
        }
    )
    tls_certs: str = field(
        metadata={
            "help": "folder of further certificates, NAME.crt and NAME.key, shown to whoever asks for NAME; *.NAME too",
            "default": "",
        }
    )
    redirect_listen: Address | None = field(
        metadata={"help": "listener that sends browsers to https (308), such as 0.0.0.0:80; empty: none", "default": ""}
    )
    access_log: str = field(
        metadata={"help": "one line per request to functions and the API: json | combined; empty: none", "default": ""}
    )
    access_log_file: str = field(
        metadata={"help": "its file, absolute; - is stdout; empty: DIR/access/access.log", "default": ""}
    )
    otlp_endpoint: str = field(
        metadata={"help": "OpenTelemetry collector, http://HOST:4318, that gets a span of each request", "default": ""}
    )
    sources: Mapping[str, str] = field(default_factory=dict, metadata={"hidden": True}, compare=False)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.data / 'faas.db'}"

    @property
    def registry_database(self) -> str:
        return f"sqlite+aiosqlite:///{self.data / 'registry.db'}"

    @property
    def admin_token_file(self) -> Path:
        return self.data / "admin-token"

    @property
    def server_file(self) -> Path:
        return self.data / "server.json"

    @property
    def server_id(self) -> str:
        """Eight characters that name this data folder in cgroups, labels and firewall tables."""
        return hashlib.sha256(str(self.data).encode()).hexdigest()[:8]

    @property
    def trigger_folders(self) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in self.trigger_roots.split(":") if folder)

    @property
    def proxies(self) -> TrustedProxies:
        return TrustedProxies.parse(self.trusted_proxies)

    @property
    def access_file(self) -> Path | None:
        """None: stdout."""
        if self.access_log_file == "-":
            return None
        return Path(self.access_log_file) if self.access_log_file else self.data / "access" / "access.log"

    @property
    def tls_folders(self) -> tuple[Path, ...]:
        """Where certificates are read, also later."""
        files = [Path(file).absolute().parent for file in (self.tls_cert, self.tls_key) if file]
        return (*files, *([Path(self.tls_certs).absolute()] if self.tls_certs else []))

    @property
    def tls(self) -> bool:
        return bool(self.tls_cert)

    def check(self) -> None:
        """Refuse what must not start. Raises InvalidInput."""
        if self.driver not in ("auto", "oci", "docker"):
            raise InvalidInput(f"driver must be auto, oci or docker, not {self.driver!r}")
        if self.log_format not in ("text", "json"):
            raise InvalidInput(f"log_format must be text or json, not {self.log_format!r}")
        if self.registry_auth not in ("basic", "token", "none"):
            raise InvalidInput(f"registry_auth must be basic, token or none, not {self.registry_auth!r}")
        check_processes(self.processes, tls=self.tls)
        if self.database_url and not self.database_url.startswith("sqlite+aiosqlite:///"):
            raise InvalidInput("only SQLite is offered yet", hint="drop --database-url or use sqlite+aiosqlite:///PATH")
        self._check_tls()
        self._check_seen()
        for name in ("listen", "api_listen", "registry_listen"):
            address: Address = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            if not address.is_loopback and not self.tls and not self.insecure:
                raise InvalidInput(
                    f"{flag} {address} is beyond loopback and there is no TLS",
                    hint="pass --tls-cert and --tls-key, or --insecure if the network is yours alone",
                )
        if not 0 <= self.bandwidth <= BANDWIDTH_MOST:
            raise InvalidInput(f"bandwidth must be 0 to {BANDWIDTH_MOST} Mbit/s, not {self.bandwidth}")
        if not 0 <= self.stems <= STEMS_MOST:
            raise InvalidInput(f"stems must be 0 to {STEMS_MOST}, not {self.stems}")
        if not 0 <= self.precreated <= PRECREATED_MOST:
            raise InvalidInput(f"precreated must be 0 to {PRECREATED_MOST}, not {self.precreated}")
        if self.memory_budget and self.memory_budget < MEMORY_BUDGET_LEAST:
            raise InvalidInput(f"memory_budget must be {MEMORY_BUDGET_LEAST} MB or more, or 0 for the machine's")
        if not 1 <= self.max_concurrency <= MAX_CONCURRENCY_MOST:
            raise InvalidInput(f"max_concurrency must be 1 to {MAX_CONCURRENCY_MOST}, not {self.max_concurrency}")
        if not 1 <= self.burst <= BURST_MOST:
            raise InvalidInput(f"burst must be 1 to {BURST_MOST}, not {self.burst}")
        if not 0 <= self.connections_per_address <= CONNECTIONS_MOST:
            words = f"0 to {CONNECTIONS_MOST}, not {self.connections_per_address}"
            raise InvalidInput(f"connections_per_address must be {words}")
        try:
            TrustedProxies.parse(self.trusted_proxies)
        except ValueError as error:
            raise InvalidInput(f"trusted_proxies must be {error}") from None
        for folder in self.trigger_folders:
            if not folder.is_absolute() or ".." in folder.parts or folder == Path("/"):
                raise InvalidInput(f"trigger_roots must be absolute folders with : between them, not {str(folder)!r}")
        if self.registry_auth == "none" and not self.registry_listen.is_loopback:
            raise InvalidInput("a registry without login listens on loopback only")

    def _check_tls(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidInput("--tls-cert and --tls-key go together")
        if self.tls_certs and not self.tls:
            raise InvalidInput(
                "--tls-certs needs --tls-cert and --tls-key: what is shown to those who ask for no name of the folder"
            )
        if self.redirect_listen is not None and not self.tls:
            raise InvalidInput("--redirect-listen leads to https, and there is no TLS", hint="--tls-cert and --tls-key")

    def _check_seen(self) -> None:
        if self.access_log not in ("", "json", "combined"):
            raise InvalidInput(f"access_log must be json, combined or empty, not {self.access_log!r}")
        if self.access_log_file and self.access_log_file != "-":
            if not self.access_log:
                raise InvalidInput("access_log_file goes with access_log", hint="--access-log json")
            if not Path(self.access_log_file).is_absolute():
                raise InvalidInput(f"access_log_file must be an absolute path or -, not {self.access_log_file!r}")
        if self.otlp_endpoint:
            try:
                parts = urlsplit(self.otlp_endpoint)
                is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                is_one = False
            if not is_one:
                words = f"http://127.0.0.1:4318, not {self.otlp_endpoint!r}"
                raise InvalidInput(f"otlp_endpoint must be a URL such as {words}")


def default_data(environ: Mapping[str, str] = os.environ) -> Path:
    """Root's is /var/lib/faas; another user's is in the user's data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/faas")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "faas"


def _convert(name: str, value: Any) -> Any:
    if name == "data":
        return Path(value).expanduser().absolute()
    if name == "redirect_listen" and not value:
        return None
    if name.endswith("listen"):
        return Address.parse(str(value))
    if name in WHOLE:
        return int(value)
    if name == "insecure":
        return value if isinstance(value, bool) else str(value).lower() in ("1", "true", "yes", "on")
    return str(value)


def _from_file(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        if os.geteuid() == 0 and {path.lstat().st_uid, path.stat().st_uid} != {0}:
            raise InvalidInput(f"{path} is not root's", hint="it decides what root does: chown root, or remove it")
        written = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from None
    for key in written:
        if key not in known - {"data"}:
            raise InvalidInput(f"{path}: unknown setting {key}", hint="known: " + ", ".join(sorted(known - {"data"})))
    return written


def load(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `flags` (None = not given), the environment, DIR/config.toml and the defaults.

    Raises InvalidInput that names the setting and where it was written.
    """
    table = {f.name: f for f in fields(Settings) if "hidden" not in f.metadata}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file_values: dict[str, Any] = {}
    for name, setting in table.items():  # `data` is the first field, so that its config.toml is known to the rest
        variable = ENV_PREFIX + name.upper()
        if flags.get(name) is not None:
            written, source = flags[name], "flag"
        elif environ.get(variable):
            written, source = environ[variable], variable
        elif name in file_values:
            written, source = file_values[name], str(values["data"] / "config.toml")
        else:
            written, source = setting.metadata.get("default", default_data(environ)), "default"
        try:
            values[name] = _convert(name, written)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{name} ({source}) must be {error}, not {written!r}") from None
        sources[name] = source
        if name == "data":
            file_values = _from_file(values["data"] / "config.toml", set(table))
    settings = Settings(**values, sources=sources)
    settings.check()
    return settings


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How the command line finds the server: FAAS_URL, FAAS_TOKEN, FAAS_CA, else what login or the server left."""

    url: str = ""
    token: str = field(default="", repr=False)
    ca: str = ""
    config_home: Path = Path()
    data: Path = Path()
    no_color: bool = False
    term: str = ""


def load_client(environ: Mapping[str, str] = os.environ) -> ClientSettings:
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "faas"
    return ClientSettings(
        url=environ.get("FAAS_URL", ""),
        token=environ.get("FAAS_TOKEN", ""),
        ca=environ.get("FAAS_CA", ""),
        config_home=home,
        data=Path(environ.get("FAAS_DATA") or default_data(environ)),
        no_color=bool(environ.get("NO_COLOR")),
        term=environ.get("TERM", ""),
    )


def environment_for(names: tuple[str, ...] = (), prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """The part of our environment that a child program may see: PATH, HOME, locale, and what is asked for."""
    keep = {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", *names}
    return {k: v for k, v in os.environ.items() if k in keep or k.startswith(prefixes or ("\0",))}
