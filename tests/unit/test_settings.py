"""Settings: flag > environment > DIR/config.toml > default, each value with its source; what must not start."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from faas.errors import InvalidInput
from faas.settings import Address, Settings, default_data, environment_for, load, load_client


def loaded(data: Path, flags: dict[str, Any] | None = None, **environ: str) -> Settings:
    return load({"data": str(data), **(flags or {})}, environ)


def test_the_defaults_are_the_contracts(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    assert str(settings.listen) == "127.0.0.1:8080"
    assert str(settings.api_listen) == "127.0.0.1:8081"
    assert str(settings.registry_listen) == "127.0.0.1:5000"
    assert (settings.driver, settings.processes, settings.log_format, settings.insecure) == ("auto", 1, "text", False)
    assert settings.trigger_folders == (Path("/srv"),)
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/faas.db"
    assert settings.admin_token_file == tmp_path / "admin-token"
    assert settings.sources["driver"] == "default"
    assert settings.sources["data"] == "flag"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('listen = "127.0.0.1:1"\ndriver = "docker"\nlog_format = "json"\n')
    settings = loaded(tmp_path, {"listen": "127.0.0.1:3"}, FAAS_LISTEN="127.0.0.1:2", FAAS_DRIVER="oci")
    assert (settings.listen.port, settings.driver, settings.log_format) == (3, "oci", "json")
    assert settings.sources["listen"] == "flag"
    assert settings.sources["driver"] == "FAAS_DRIVER"
    assert settings.sources["log_format"] == str(tmp_path / "config.toml")


def test_the_data_folder_of_the_environment_is_the_one_whose_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('driver = "docker"\n')
    settings = load({}, {"FAAS_DATA": str(tmp_path)})
    assert (settings.data, settings.driver) == (tmp_path, "docker")


@pytest.mark.parametrize("name", [f.name for f in fields(Settings) if "hidden" not in f.metadata])
def test_every_setting_can_come_from_the_environment(tmp_path: Path, name: str) -> None:
    values = {
        "data": str(tmp_path / "other"),
        "listen": "127.0.0.1:9",
        "api_listen": "127.0.0.1:9",
        "registry_listen": "127.0.0.1:9",
        "driver": "docker",
        "database_url": "sqlite+aiosqlite:////tmp/x.db",
        "processes": "1",
        "log_format": "json",
        "insecure": "true",
        "registry_auth": "none",
        "registry_upstreams": "docker.io=https://registry-1.docker.io",
        "trigger_roots": "/srv:/mnt/scans",
        "memory_budget": "600",
        "bandwidth": "300",
        "user": "faas",
        "stems": "3",
        "precreated": "2",
        "max_concurrency": "200",
        "burst": "30",
        "trusted_proxies": "10.0.0.0/8 fd00::/8",
        "connections_per_address": "20",
        "private_key_sets": "true",
        "private_notifications": "true",
        "redirect_listen": "127.0.0.1:9",
        "access_log": "json",
        "access_log_file": "/var/log/access.log",
        "otlp_endpoint": "http://127.0.0.1:4318",
    }
    tls = {"FAAS_TLS_KEY": "k", "FAAS_TLS_CERT": "c"}
    pair = {"tls_cert": {"FAAS_TLS_KEY": "k"}, "tls_key": {"FAAS_TLS_CERT": "c"}, "tls_certs": tls,
            "redirect_listen": tls, "access_log_file": {"FAAS_ACCESS_LOG": "json"}}  # fmt: skip
    environ = {"FAAS_DATA": str(tmp_path), f"FAAS_{name.upper()}": values.get(name, "something"), **pair.get(name, {})}
    settings = load({}, environ)
    assert settings.sources[name] == f"FAAS_{name.upper()}"
    assert str(getattr(settings, name)).lower() == values.get(name, "something")


def test_an_unknown_key_of_the_file_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 1\n")
    with pytest.raises(InvalidInput, match=r"config\.toml: unknown setting port") as caught:
        loaded(tmp_path)
    assert "api_listen" in caught.value.hint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"listen": "8080"}, "listen \\(flag\\) must be HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"listen": "0.0.0.0:8080"}, "--listen 0.0.0.0:8080 is beyond loopback and there is no TLS"),
        ({"registry_listen": ":5000"}, "--registry-listen 0.0.0.0:5000 is beyond loopback"),
        ({"driver": "podman"}, "driver must be auto, oci or docker"),
        ({"log_format": "xml"}, "log_format must be text or json"),
        ({"processes": "0"}, "processes must be 1 to"),
        ({"processes": "1000"}, "processes must be 1 to"),
        ({"processes": "2", "tls_cert": "c.pem", "tls_key": "k.pem"}, "not offered with TLS"),
        ({"memory_budget": "127"}, "memory_budget must be 128 MB or more"),
        ({"memory_budget": "-1"}, "memory_budget must be 128 MB or more"),
        ({"memory_budget": "2G"}, "memory_budget \\(flag\\) must be"),
        ({"bandwidth": "-1"}, "bandwidth must be 0 to 100000 Mbit/s"),
        ({"stems": "-1"}, "stems must be 0 to"),
        ({"precreated": "-1"}, "precreated must be 0 to"),
        ({"precreated": "9"}, "precreated must be 0 to"),
        ({"max_concurrency": "0"}, "max_concurrency must be 1 to 100000"),
        ({"burst": "1001"}, "burst must be 1 to 1000"),
        ({"trusted_proxies": "10.0.0.1/8"}, "trusted_proxies must be networks such as"),
        ({"connections_per_address": "-1"}, "connections_per_address must be 0 to"),
        ({"processes": "many"}, "processes \\(flag\\) must be"),
        ({"database_url": "postgresql://x"}, "only SQLite is offered yet"),
        ({"tls_cert": "c.pem"}, "--tls-cert and --tls-key go together"),
        ({"tls_certs": "/etc/certs"}, "--tls-certs needs --tls-cert and --tls-key"),
        ({"redirect_listen": "127.0.0.1:80"}, "--redirect-listen leads to https, and there is no TLS"),
        ({"access_log": "xml"}, "access_log must be json, combined or empty"),
        ({"access_log_file": "/var/log/x"}, "access_log_file goes with access_log"),
        ({"access_log": "json", "access_log_file": "x"}, "access_log_file must be an absolute path or -"),
        ({"otlp_endpoint": "127.0.0.1:4318"}, "otlp_endpoint must be a URL"),
        ({"otlp_endpoint": "http://x:0"}, "otlp_endpoint must be a URL"),
        ({"registry_auth": "open"}, "registry_auth must be basic, token or none"),
        ({"registry_auth": "none", "registry_listen": "10.0.0.1:5000", "insecure": True}, "loopback only"),
    ],
)
def test_what_must_not_start_is_refused(tmp_path: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        loaded(tmp_path, flags)


def test_beyond_loopback_takes_tls_or_the_word_insecure(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"listen": "0.0.0.0:8080", "insecure": True}).listen.host == "0.0.0.0"
    assert loaded(tmp_path, {"listen": "[::]:8080", "tls_cert": "c", "tls_key": "k"}).tls


@pytest.mark.parametrize(
    ("text", "host", "loopback"),
    [("127.0.0.1:80", "127.0.0.1", True), ("[::1]:80", "::1", True), ("localhost:80", "localhost", True),
     ("127.9.9.9:1", "127.9.9.9", True), (":80", "0.0.0.0", False), ("example.org:80", "example.org", False)],
)  # fmt: skip
def test_addresses(text: str, host: str, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.is_loopback) == (host, loopback)
    assert Address.parse(str(address)) == address


def test_the_client_is_told_by_the_environment() -> None:
    environ = {"FAAS_URL": "http://x", "FAAS_TOKEN": "t", "XDG_CONFIG_HOME": "/c", "FAAS_DATA": "/d", "NO_COLOR": "1"}
    client = load_client(environ)
    assert (client.url, client.token, client.config_home, client.data) == ("http://x", "t", Path("/c/faas"), Path("/d"))
    assert client.no_color
    assert "token='t'" not in repr(client)


def test_the_data_folder_without_root_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data({"XDG_DATA_HOME": "/home/x/data"}) == Path("/home/x/data/faas")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data({"XDG_DATA_HOME": "/home/x/data"}) == Path("/var/lib/faas")


def test_children_see_only_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAAS_TOKEN", "secret")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index")
    seen = environment_for(prefixes=("PIP_",))
    assert "FAAS_TOKEN" not in seen
    assert seen["PIP_INDEX_URL"] == "http://index"
    assert "PATH" in seen


def test_trigger_roots_are_folders_with_colons_between_and_may_be_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, FAAS_TRIGGER_ROOTS="/srv/in:/mnt").trigger_folders == (Path("/srv/in"), Path("/mnt"))
    assert loaded(tmp_path, {"trigger_roots": ""}).trigger_folders == ()
    (tmp_path / "config.toml").write_text('trigger_roots = "/data/photos"\n')
    assert loaded(tmp_path).trigger_folders == (Path("/data/photos"),)
