"""`faas event`: every kind is JSON in AWS's shape, its options reach it, and the page has them all."""

from __future__ import annotations

import base64
import gzip
import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from faas.cli import main
from faas.cli.root import cli
from faas.cli.sample_events import SAMPLES, Now


@dataclass
class Line:
    """The command line in this process, without a server."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: object, code: int = 0) -> tuple[str, str]:
        got = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        assert got == code, err
        return out, err


@pytest.fixture
def faas(capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(capsys)


def printed(faas: Line, *words: object) -> Any:
    return json.loads(faas("event", *words)[0])


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_kind_prints_an_event_of_now(faas: Line, kind: str) -> None:
    event = printed(faas, kind)
    assert isinstance(event, dict)
    assert event
    text = json.dumps(event)
    for name, (default, _) in SAMPLES[kind].options.items():
        if name == "region" and "awsRegion" in text:
            assert printed(faas, kind, "--region", "eu-north-1") != event
        assert default is not None


def test_what_options_say_is_in_the_event(faas: Line) -> None:
    record = printed(faas, "s3-put", "--bucket", "photos", "--key", "a b/ü.jpg", "--size", 7)["Records"][0]
    assert (record["eventSource"], record["eventName"]) == ("aws:s3", "ObjectCreated:Put")
    assert (record["s3"]["bucket"]["name"], record["s3"]["object"]["size"]) == ("photos", 7)
    assert record["s3"]["object"]["key"] == "a+b/%C3%BC.jpg", "as S3 writes it"
    assert abs(datetime.fromisoformat(record["eventTime"]).timestamp() - time.time()) < 60
    assert "size" not in printed(faas, "s3-delete")["Records"][0]["s3"]["object"]
    messages = printed(faas, "sqs", "--body", "hi", "--count", 3)["Records"]
    assert [message["body"] for message in messages] == ["hi"] * 3
    assert len({message["messageId"] for message in messages}) == 3
    assert messages[0]["md5OfBody"] == "49f68a5c8493ec2c0bf489821c21fc3b"
    assert printed(faas, "sns", "--message", "m", "--subject", "s")["Records"][0]["Sns"]["Subject"] == "s"
    assert printed(faas, "schedule", "--rule", "tick")["resources"][0].endswith(":rule/tick")
    assert printed(faas, "eventbridge", "--detail", '{"a": 1}', "--type", "T")["detail"] == {"a": 1}
    kinesis = printed(faas, "kinesis", "--data", "d")["Records"][0]["kinesis"]
    assert base64.b64decode(kinesis["data"]) == b"d"
    packed = printed(faas, "logs", "--message", "boom")["awslogs"]["data"]
    assert json.loads(gzip.decompress(base64.b64decode(packed)))["logEvents"][0]["message"] == "boom"


def test_requests_are_those_that_functions_get_here(faas: Line) -> None:
    words = ("--method", "post", "--path", "/x?a=1&a=2", "--header", "X-Own: yes", "--body", "{}")
    two, one = printed(faas, "http", *words), printed(faas, "apigw-v1", *words)
    assert (two["version"], two["requestContext"]["http"]["method"], two["body"]) == ("2.0", "POST", "{}")
    assert (two["rawPath"], two["queryStringParameters"], two["headers"]["x-own"]) == ("/x", {"a": "1,2"}, "yes")
    assert (one["version"], one["multiValueQueryStringParameters"]) == ("1.0", {"a": ["1", "2"]})
    assert printed(faas, "alb", *words)["requestContext"]["elb"]
    for kind, event_type in (("message", "MESSAGE"), ("connect", "CONNECT"), ("disconnect", "DISCONNECT")):
        assert printed(faas, "websocket", "--kind", kind)["requestContext"]["eventType"] == event_type


def test_dynamodbs_values_have_their_types_and_its_changes_their_images(faas: Line) -> None:
    item = '{"id": "1", "n": 2, "yes": true, "none": null, "list": ["a"], "map": {"x": 1.5}}'
    change = printed(faas, "dynamodb", "--item", item)["Records"][0]["dynamodb"]
    assert change["Keys"] == {"id": {"S": "1"}}
    assert change["NewImage"] == {
        "id": {"S": "1"}, "n": {"N": "2"}, "yes": {"BOOL": True}, "none": {"NULL": True},
        "list": {"L": [{"S": "a"}]}, "map": {"M": {"x": {"N": "1.5"}}},
    }  # fmt: skip
    assert "OldImage" not in change
    removed = printed(faas, "dynamodb", "--change", "REMOVE")["Records"][0]["dynamodb"]
    assert ("OldImage" in removed, "NewImage" in removed) == (True, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dynamodb", "--item", "{"), "--item is no JSON"),
        (("dynamodb", "--key", "other"), "has no other"),
        (("eventbridge", "--detail", "[]"), "--detail must be a JSON object"),
        (("http", "--header", "nothing"), "is not NAME: VALUE"),
        (("nonsense",), "No such command"),
    ],
)
def test_what_makes_no_event_is_refused(faas: Line, words: tuple[str, ...], said: str) -> None:
    assert said in faas("event", *words, code=2)[1]


def test_ids_and_times_come_from_outside_and_are_nowhere_else() -> None:
    now = Now(1_700_000_000.0, lambda: "0" * 32)
    for name, sample in SAMPLES.items():
        options = {key: value[0] if isinstance(value, tuple) else value for key, (value, _) in sample.options.items()}
        assert sample.make(options, now) == sample.make(options, now), name


def test_the_shell_completes_kinds_and_options() -> None:
    def completed(*words: str) -> list[str]:
        return [
            found.value
            for found in ShellComplete(cli, {}, "faas", "_FAAS_COMPLETE").get_completions(list(words[:-1]), words[-1])
        ]

    assert completed("event", "s3") == ["s3-delete", "s3-put"]
    assert "--bucket" in completed("event", "s3-put", "--b")


def test_the_page_has_every_kind_with_its_options(project_root: Path) -> None:
    text = (project_root / "faas/cli/README.md").read_text()
    for name, sample in SAMPLES.items():
        assert f"| `{name}` | {sample.help.rstrip('.')} | {', '.join(sample.options)} |\n" in text
