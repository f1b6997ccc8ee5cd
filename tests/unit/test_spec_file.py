"""`faas.toml` as it is written: the contract's own listing, and wrong values with their file, line and flag."""

from __future__ import annotations

import json
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from faas import spec, spec_file
from faas.errors import NotFound, SpecError
from faas.routes import RouteSpec
from faas.rules.rules import KEYS as RULE_KEYS
from faas.spec import FunctionSpec

# The contract's listing: defaults, except in lines marked e.g.
CONTRACT = """
name = "thumbnail"            # e.g.
runtime = "python"            # e.g.: python[3.x] | node[x] | provided; or image = "…"; or a Dockerfile in the folder
handler = "app.handler"       # Lambda style handler(event, context); or app = "main:app" (ASGI or WSGI)
interface = "auto"            # auto | lambda | http
memory = 128                  # MB, 128–10240, steps of 1; CPU follows: 1769 MB = 1 vCPU
timeout = 30                  # s, 1–900
init_timeout = 10             # s until the first `next` or the port listens
queue_timeout = 10            # s a request may wait for an instance, then 429
concurrency = 1               # requests at once in one instance; > 1 for http functions
ephemeral_storage = 512       # MB of /tmp, on disk with a hard size: not counted as memory, gone with the instance
writable_root = false         # true: a disk-backed upper layer within ephemeral_storage
network = "outbound"          # outbound | none. Never: host loopback and addresses, API, other instances
port = 8080                   # http functions
health = ""                   # http functions: path that must answer 2xx before traffic; "" = the port listens
public = false                # true: anyone may call; false: a key, token or signature
follow = ""                   # a tag of the repository: a push to it deploys
command = []                  # with entrypoint, workdir: override the image's

[scale]
min = 0                       # kept ready (provisioned)
max = 50                      # most instances
reserved = 0                  # instances that nobody else can take, and no more than these; 0 = none reserved
target = 0.7                  # of concurrency, for http functions with concurrency > 1
idle = "5m"                   # before an instance goes
[async]
retries = 2                   # after 1 and 2 minutes
max_age = "6h"
on_failure = ""               # a function, or "dlq"
[env]
LEVEL = "info"                # e.g.
[secrets]
DB_PASSWORD = "db-password"   # e.g.: name of a stored secret → environment; also at /run/secrets/NAME
[[schedule]]
name = "tick"                 # e.g.
cron = "*/5 * * * *"          # e.g.: five fields
timezone = "UTC"
missed = "once"               # once | skip | all, for fire times while the server was down
overlap = "allow"             # allow | skip
input = { kind = "tick" }     # e.g.
[[trigger]]
watch = "/srv/photos"         # e.g.
pattern = "*.jpg"             # e.g.
[[route]]
path = "/img/{id}"            # e.g.
methods = ["GET"]             # e.g.
"""


def written(folder: Path, text: str) -> spec_file.SpecFile:
    path = folder / "faas.toml"
    path.write_text(text)
    return spec_file.read(path)


def refused(folder: Path, text: str, flags: dict[str, Any] | None = None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec_file.parse(written(folder, text), flags)
    return caught.value


def test_the_contracts_listing_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    listed = spec_file.parse(written(tmp_path, CONTRACT))
    bare = FunctionSpec("thumbnail")
    values, defaults = listed.to_dict(), bare.to_dict()
    examples = {"name", "runtime", "handler", "env", "secrets", "schedule", "trigger", "route"}
    assert {k: v for k, v in values.items() if k not in examples} == {
        k: v for k, v in defaults.items() if k not in examples
    }
    assert listed.schedules == (spec.ScheduleSpec("tick", "*/5 * * * *", input={"kind": "tick"}),)
    assert listed.triggers == (spec.TriggerSpec("/srv/photos", "*.jpg"),)
    assert listed.routes == (RouteSpec("/img/{id}", ("GET",)),)
    assert listed.scale.idle == timedelta(minutes=5)


def test_every_key_of_the_listing_is_one_that_a_spec_has() -> None:
    data = tomllib.loads(CONTRACT)
    known = FunctionSpec("x").to_dict()
    assert data.keys() <= known.keys()
    assert data["scale"].keys() == known["scale"].keys()
    assert data["async"].keys() == known["async"].keys()
    assert known.keys() - data.keys() - set(RULE_KEYS) == {"image", "app", "entrypoint", "workdir"}  # in its comments


def test_what_a_spec_says_of_itself_is_taken_back() -> None:
    listed = spec.parse(tomllib.loads(CONTRACT))
    assert spec.parse(listed.to_dict()) == listed


@pytest.mark.parametrize("flags", [None, {"scale": {"idle": "learn"}}])
def test_an_idle_time_may_be_learned(tmp_path: Path, flags: dict[str, Any] | None) -> None:
    found = spec_file.parse(
        written(tmp_path, f'name = "x"\nscale = {{ idle = "{"5m" if flags else "learn"}" }}\n'), flags
    )
    assert (found.scale.learns, found.scale.idle_seconds) == (True, 600)
    assert found.to_dict()["scale"]["idle"] == "learn"
    assert spec.parse(found.to_dict()) == found
    assert not spec.parse({"name": "x"}).scale.learns


def test_a_secret_is_named_and_what_is_no_name_is_not_repeated(tmp_path: Path) -> None:
    for text, flags, place in (
        ('[secrets]\nA = "Geheim!"\n', {}, f"{tmp_path}/faas.toml:3: secrets.A must be"),
        ('[secrets]\nPORT = "db"\n', {}, f"{tmp_path}/faas.toml:3: secrets.PORT"),
        ("", {"secrets": {"A": "Geheim!"}}, "--secret: secrets.A must be"),
        ('[env]\nA = "x"\n', {"secrets": {"A": "db"}}, "--secret: A stands in env and in secrets"),
    ):
        error = refused(tmp_path, f'name = "x"\n{text}', flags)
        assert error.message.startswith(place), error.message
        assert "Geheim" not in error.message + error.hint


RANGES = [
    ("memory", 128, 10_240),
    ("timeout", 1, 900),
    ("init_timeout", 1, 900),
    ("queue_timeout", 0, 900),
    ("concurrency", 1, 1000),
    ("ephemeral_storage", 0, 10_240),
    ("port", 1, 65_535),
    ("scale.min", 0, 1000),
    ("scale.max", 1, 1000),
    ("scale.reserved", 0, 1000),
    ("async.retries", 0, 2),
]


@pytest.mark.parametrize(("key", "low", "high"), RANGES)
def test_a_number_holds_within_its_range_and_is_refused_beyond(tmp_path: Path, key: str, low: int, high: int) -> None:
    table, _, name = key.rpartition(".")

    def text(value: object) -> str:
        room = "max = 1000\n" if key in ("scale.min", "scale.reserved") else ""
        return 'name = "x"\n' + (f"[{table}]\n" if table else "") + f"{name} = {value}\n{room}"

    for fine in (low, high):
        values = spec_file.parse(written(tmp_path, text(fine))).to_dict()
        assert (values[table][name] if table else values[name]) == fine
    for wrong in (low - 1, high + 1, '"128"', "true", "1.5"):
        error = refused(tmp_path, text(wrong))
        assert f"faas.toml:{3 if table else 2}: {key} must be a whole number from {low} to {high}" in error.message


@pytest.mark.parametrize(
    ("key", "fine", "wrong", "words"),
    [
        ("target", ("0.1", "1", "1.0"), ("0.09", "1.01", "nan", "inf", '"0.7"', "true"), "a number from 0.1 to 1.0"),
        ("idle", ('"0s"', "0", '"24h"', "86400"), ('"86401s"', '"25h"', "-1"), "a duration from 0s to 1d"),
        ("idle", ('"250ms"',), ("inf", "nan", "1e300", "-inf", f'"{"9" * 400}d"', f'"{"9" * 5000}"', "9" * 400,
                               "true", '"-5m"', '"5 m"', '"²"'), "a duration"),
    ],
)  # fmt: skip
def test_a_share_or_a_duration_holds_within_its_range_and_is_refused_beyond(
    tmp_path: Path, key: str, fine: tuple[str, ...], wrong: tuple[str, ...], words: str
) -> None:
    for value in fine:
        spec_file.parse(written(tmp_path, f'name = "x"\n[scale]\n{key} = {value}\n'))
    for value in wrong:
        error = refused(tmp_path, f'name = "x"\n[scale]\n{key} = {value}\n')
        assert f"faas.toml:3: scale.{key} must be {words}" in error.message
        assert len(error.message) < 600


def test_json_that_overflows_is_refused_too() -> None:
    for value in ("1e999", "-1e999", "9" * 400, "NaN"):
        with pytest.raises(SpecError, match=r"scale\.idle must be a duration"):
            spec.parse({"name": "x", "scale": {"idle": json.loads(value)}})


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_that_python_would_not_write_out_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SpecError):
        spec_file.parse(written(tmp_path, f'name = "x"\nmemory = {value}\n'))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('name = "Hello"', "name must be 1 to 63 of a-z"),
        ('name = "-x"', "name must be"),
        ('runtime = "perl"', "runtime must be python, python3.x, node, nodeX or provided"),
        ('interface = "grpc"', "interface must be one of auto, lambda, http"),
        ('network = "host"', "network must be one of outbound, none"),
        ('writable_root = "yes"', "writable_root must be true or false"),
        ('follow = ".x"', "follow must be a tag: 1 to 128 letters"),
        (f'follow = "{"x" * 129}"', "follow must be a tag"),
        ('health = "ready"', "health must be a path that starts with /"),
        ('workdir = "/proc/self/fd/7"', "workdir must be a path outside /proc"),
        ('command = "sh -c x"', "command must be a list"),
        ("env = { A = 1 }", "env must be a table of texts (A is none: put quotes around it)"),
        ('env = { "A-B" = "1" }', "env must be a table of names"),
        ('scale = { idle = "soon" }', "scale.idle must be a duration"),
        ('scale = { idle = "Learn" }', 'scale.idle must be a duration such as "30s", "5m" or "1h30m" or "learn"'),
        ('scale = { idle = "2d" }', 'scale.idle must be a duration from 0s to 1d or "learn"'),
        ('async = { max_age = "learn" }', 'async.max_age must be a duration such as "30s", "5m" or "1h30m", not'),
        ('async = { max_age = "7h" }', "async.max_age must be a duration from 1m to 6h"),
        ('schedule = "daily"', "schedule must be an array of tables"),
        ('cors = { origins = ["https://a.example/b"] }', "cors.origins must be origins such as"),
        ('cors = { origins = ["*"], credentials = true }', 'cors.origins has "*"'),
        ("cors = { headers = [] }", "cors needs origins"),
        ("compress = 6", "compress must be true or false"),
        ('payload = "3.0"', "payload must be one of 2.0, 1.0"),
        ('websocket = { origins = ["mine.example"] }', "websocket.origins must be a list of origins such as"),
        ('websocket = { origins = ["https://a.example/b"] }', "websocket.origins must be a list of origins such as"),
        ('websocket = { idle = "0s" }', "websocket.idle must be a duration from 1s to 1d"),
        ("websocket = { max_message = 1048577 }", "websocket.max_message must be a whole number from 0 to 1048576"),
        ('websocket = { origin = "x" }', "unknown key websocket.origin"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_and_what_is_allowed(tmp_path: Path, line: str, words: str) -> None:
    error = refused(tmp_path, ('name = "x"\n\n' if not line.startswith("name") else "\n\n") + line + "\n")
    assert error.message.startswith(f"{tmp_path}/faas.toml:3: {words}")


def test_an_unknown_key_asks_did_you_mean(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n# a comment = 1\nmemroy = 256\n')
    assert error.message == f"{tmp_path}/faas.toml:3: unknown key memroy"
    assert error.hint == "did you mean memory?"
    error = refused(tmp_path, 'name = "x"\n[scale]\nmaxx = 2\n')
    assert error.message.endswith("faas.toml:3: unknown key scale.maxx")
    assert error.hint == "did you mean scale.max?"


@pytest.mark.parametrize("cron", ["0 0 * * * *", "61 * * * *", "whenever"])
def test_a_wrong_cron_expression_in_the_second_schedule_is_named_with_its_line(tmp_path: Path, cron: str) -> None:
    text = f'name = "x"\n[[schedule]]\nname = "a"\ncron = "* * * * *"\n\n[[schedule]]\nname = "b"\ncron = "{cron}"\n'
    assert "faas.toml:8: schedule[1].cron must be" in refused(tmp_path, text).message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('handler = "a.b"\napp = "a:b"\n', 3),
        ('image = "x:1"\nruntime = "python"\n', 2),
        ('handler = "a.b"\nconcurrency = 2\n', 3),
        ('memory = 128\nhandler = "a.b"\n', 3),
        ('memory = 128\napp = "a:b"\n', 3),
        ('runtime = "node20"\napp = "a:b"\n', 3),
        ('runtime = "provided"\napp = "a:b"\n', 3),
        ("[scale]\nmin = 3\nmax = 2\n", 3),
        ('[async]\non_failure = "x"\n', 3),
        ('[[schedule]]\nname = "a"\ncron = "* * * * *"\n[[schedule]]\nname = "a"\ncron = "* * * * *"\n', 2),
        ('[[schedule]]\nname = "a"\n', 2),
    ],
)
def test_keys_that_do_not_go_together_are_refused_at_one_of_them(tmp_path: Path, text: str, line: int) -> None:
    assert refused(tmp_path, f'name = "x"\n{text}').message.startswith(f"{tmp_path}/faas.toml:{line}: ")


def test_a_missing_name_is_asked_for(tmp_path: Path) -> None:
    error = refused(tmp_path, "memory = 128\n")
    assert error.message == f"{tmp_path}/faas.toml: a function needs a name"
    assert "--name" in error.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [('name = "x"\nmemory = \n', 2), ('name = "x"\nname = "y"\n', 2), ('name = "x"\nhandler = app.handler\n', 2)],
)
def test_what_is_no_toml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "faas.toml").write_text(text)
    with pytest.raises(SpecError, match=f"faas.toml:{line}: not TOML: "):
        spec_file.read(tmp_path / "faas.toml")


def test_a_folder_without_a_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        spec_file.read(tmp_path / "faas.toml")
    assert "faas new" in caught.value.hint


def test_lines_are_found_through_every_form_of_toml() -> None:
    text = '''# name = "no"
"name" = "x"   # [scale]
env.LEVEL = """
memory = 1
[scale]
"""
command = [
  "a",   # ]
  'b = [',
]
entrypoint = [ { x = "}" } ]
[ scale ]
max = 3
[[schedule]]
name = "a"
[schedule.input]
deep = 1
[[schedule]]
cron = 'x'
'''
    assert dict(spec_file.key_lines(text)) == {
        "name": 2,
        "env.LEVEL": 3,
        "command": 7,
        "entrypoint": 11,
        "scale": 12,
        "scale.max": 13,
        "schedule": 14,
        "schedule[0]": 14,
        "schedule[0].name": 15,
        "schedule[0].input": 16,
        "schedule[0].input.deep": 17,
        "schedule[1]": 18,
        "schedule[1].cron": 19,
    }


def test_flags_win_over_the_file_and_tables_are_merged(tmp_path: Path) -> None:
    file = written(tmp_path, 'name = "x"\nmemory = 200\n[env]\nA = "1"\nB = "2"\n[scale]\nmin = 1\nmax = 5\n')
    flags = {"memory": 300, "env": {"B": "3"}, "scale": {"max": 9}, "command": ["run"]}
    made = spec_file.parse(file, flags)
    assert (made.memory, made.env, made.scale.min, made.scale.max) == (300, {"A": "1", "B": "3"}, 1, 9)
    assert made.command == ("run",)


def test_a_wrong_flag_is_named_as_the_flag(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\nmemory = 200\n', {"memory": 1})
    assert error.message.startswith("--memory: memory must be a whole number")
    error = refused(tmp_path, 'name = "x"\n[scale]\nmin = 2\n', {"scale": {"max": 2000}})
    assert error.message.startswith("--scale-max: scale.max must be")
    error = refused(tmp_path, 'name = "x"\n[scale]\nmin = 2000\n', {"scale": {"max": 2}})
    assert error.message.startswith(f"{tmp_path}/faas.toml:3: scale.min must be")


def test_a_reservation_caps_and_is_not_above_what_is_written_as_the_most() -> None:
    assert spec.parse({"name": "x", "scale": {"reserved": 5}}).scale.limit == 5
    assert spec.parse({"name": "x", "scale": {"max": 7}}).scale.limit == 7
    with pytest.raises(SpecError, match=r"scale.reserved \(60\) is above scale.max \(50\)"):
        spec.parse({"name": "x", "scale": {"reserved": 60}})
    with pytest.raises(SpecError, match=r"scale.min \(6\) is above scale.reserved \(5\)"):
        spec.parse({"name": "x", "scale": {"min": 6, "reserved": 5}})
