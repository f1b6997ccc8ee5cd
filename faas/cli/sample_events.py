"""Sample events of AWS's services, as Lambda's documentation shows them ("Invoking Lambda with events from other AWS
services"); those of HTTP and WebSocket requests are made by the gateway's own code. Pure: times and ids come in.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

from faas.errors import InvalidInput

Json = dict[str, Any]
Options = Mapping[str, Any]
BODY = '{"hello": "world"}'
ADDRESS, AGENT = "198.51.100.7", "curl/8.0"


@dataclass(frozen=True, slots=True)
class Now:
    """When, and ids that are new each time: `new_id` gives 32 hexadecimal digits."""

    seconds: float
    new_id: Callable[[], str]

    def iso(self, timespec: str = "milliseconds") -> str:
        text = datetime.fromtimestamp(self.seconds, UTC).isoformat(timespec=timespec)
        return text.replace("+00:00", "Z")

    @property
    def ms(self) -> int:
        return int(self.seconds * 1000)

    def uuid(self) -> str:
        digits = self.new_id()
        return "-".join((digits[:8], digits[8:12], f"4{digits[13:16]}", f"a{digits[17:20]}", digits[20:]))


@dataclass(frozen=True, slots=True)
class Sample:
    """`options`: name → (default, help). A default of a list is an option that may be repeated."""

    help: str
    options: Mapping[str, tuple[Any, str]]
    make: Callable[[Options, Now], Json]


def _s3(options: Options, now: Now, event: str) -> Json:
    name, key = options["bucket"], quote_plus(options["key"], safe="/")
    found: Json = {"key": key, "sequencer": f"{now.ms:016X}"}
    if event.startswith("ObjectCreated"):
        etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        found |= {"size": options["size"], "eTag": etag}
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": options["region"],
        "eventTime": now.iso(),
        "eventName": event,
        "userIdentity": {"principalId": "AWS:AIDAEXAMPLE"},
        "requestParameters": {"sourceIPAddress": ADDRESS},
        "responseElements": {"x-amz-request-id": now.new_id()[:16].upper(), "x-amz-id-2": now.new_id()},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "sample",
            "bucket": {
                "name": name,
                "ownerIdentity": {"principalId": "A3EXAMPLE"},
                "arn": f"arn:aws:s3:::{name}",
            },
            "object": found,
        },
    }
    return {"Records": [record]}


def _event_bridge(options: Options, now: Now, kind: str, source: str, resources: list[str], detail: Json) -> Json:
    return {
        "version": "0",
        "id": now.uuid(),
        "detail-type": kind,
        "source": source,
        "account": options["account"],
        "time": now.iso("seconds"),
        "region": options["region"],
        "resources": resources,
        "detail": detail,
    }


def _schedule(options: Options, now: Now) -> Json:
    rule = f"arn:aws:events:{options['region']}:{options['account']}:rule/{options['rule']}"
    return _event_bridge(options, now, "Scheduled Event", "aws.events", [rule], {})


def _bus(options: Options, now: Now) -> Json:
    return _event_bridge(options, now, options["type"], options["source"], [], _object(options["detail"], "--detail"))


def _sqs(options: Options, now: Now) -> Json:
    arn = f"arn:aws:sqs:{options['region']}:{options['account']}:{options['queue']}"
    body = options["body"]
    return {
        "Records": [
            {
                "messageId": now.uuid(),
                "receiptHandle": now.new_id(),
                "body": body,
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": str(now.ms),
                    "SenderId": "AIDAEXAMPLE",
                    "ApproximateFirstReceiveTimestamp": str(now.ms + 1),
                },
                "messageAttributes": {},
                "md5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
                "eventSource": "aws:sqs",
                "eventSourceARN": arn,
                "awsRegion": options["region"],
            }
            for _ in range(options["count"])
        ]
    }


def _sns(options: Options, now: Now) -> Json:
    arn = f"arn:aws:sns:{options['region']}:{options['account']}:{options['topic']}"
    return {
        "Records": [
            {
                "EventVersion": "1.0",
                "EventSubscriptionArn": f"{arn}:{now.uuid()}",
                "EventSource": "aws:sns",
                "Sns": {
                    "SignatureVersion": "1",
                    "Timestamp": now.iso(),
                    "Signature": "EXAMPLE",
                    "SigningCertUrl": "EXAMPLE",
                    "MessageId": now.uuid(),
                    "Message": options["message"],
                    "MessageAttributes": {},
                    "Type": "Notification",
                    "UnsubscribeUrl": "EXAMPLE",
                    "TopicArn": arn,
                    "Subject": options["subject"] or None,
                },
            }
        ]
    }


def _dynamodb(options: Options, now: Now) -> Json:
    kind, item = options["change"], _object(options["item"], "--item")
    attributes = {name: _attribute(value) for name, value in item.items()}
    key = options["key"] or next(iter(item), "")
    if key not in item:
        raise InvalidInput(f"--item has no {key or 'key'}", hint='such as --item \'{"id": "1"}\' --key id')
    change: Json = {
        "ApproximateCreationDateTime": int(now.seconds),
        "Keys": {key: attributes[key]},
        "SequenceNumber": str(now.ms),
        "SizeBytes": len(json.dumps(attributes)),
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    if kind != "REMOVE":
        change["NewImage"] = attributes
    if kind != "INSERT":
        change["OldImage"] = attributes
    table = f"arn:aws:dynamodb:{options['region']}:{options['account']}:table/{options['table']}"
    return {
        "Records": [
            {
                "eventID": now.new_id(),
                "eventName": kind,
                "eventVersion": "1.1",
                "eventSource": "aws:dynamodb",
                "awsRegion": options["region"],
                "dynamodb": change,
                "eventSourceARN": f"{table}/stream/{now.iso()[:-1]}",
            }
        ]
    }


def _attribute(value: Any) -> Json:
    """A value in DynamoDB's own JSON."""
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int | float):
        return {"N": str(value)}
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, list):
        return {"L": [_attribute(entry) for entry in value]}
    return {"M": {name: _attribute(entry) for name, entry in value.items()}}


def _kinesis(options: Options, now: Now) -> Json:
    stream = f"arn:aws:kinesis:{options['region']}:{options['account']}:stream/{options['stream']}"
    shard, number = "shardId-000000000000", f"49{now.ms:054d}"
    return {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": options["partition"],
                    "sequenceNumber": number,
                    "data": base64.b64encode(options["data"].encode()).decode(),
                    "approximateArrivalTimestamp": now.seconds,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{shard}:{number}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": f"arn:aws:iam::{options['account']}:role/sample",
                "awsRegion": options["region"],
                "eventSourceARN": stream,
            }
        ]
    }


def _logs(options: Options, now: Now) -> Json:
    data = {
        "messageType": "DATA_MESSAGE",
        "owner": options["account"],
        "logGroup": options["group"],
        "logStream": now.new_id(),
        "subscriptionFilters": ["sample"],
        "logEvents": [{"id": str(now.ms), "timestamp": now.ms, "message": options["message"]}],
    }
    packed = gzip.compress(json.dumps(data).encode(), mtime=0)
    return {"awslogs": {"data": base64.b64encode(packed).decode()}}


def _request(options: Options, now: Now) -> dict[str, Any]:
    """A request as the gateway's events are made of."""
    path, _, query = options["path"].partition("?")
    fields = [("host", options["host"]), ("user-agent", AGENT), ("x-forwarded-for", ADDRESS)]
    for text in options["header"]:
        name, colon, value = text.partition(":")
        if not colon:
            raise InvalidInput(f"--header {text!r} is not NAME: VALUE")
        fields.append((name.strip().lower(), value.strip()))
    body = options["body"].encode()
    if body and not any(name == "content-type" for name, _ in fields):
        fields.append(("content-type", "application/json"))
    return {
        "method": options["method"].upper(), "path": path or "/", "query": query, "fields": fields, "body": body,
        "protocol": "HTTP/1.1", "source_ip": ADDRESS, "request_id": now.uuid(), "function": "sample",
        "account": "anonymous", "now": now.seconds,
    }  # fmt: skip


def _v2(options: Options, now: Now) -> Json:
    from gateway.event import http_event

    return http_event(**_request(options, now))


def _v1(options: Options, now: Now) -> Json:
    from gateway.event_v1 import http_event_v1

    return http_event_v1(**_request(options, now))


def _alb(options: Options, now: Now) -> Json:
    request = _request(options, now)
    pairs = [pair.partition("=") for pair in request["query"].split("&") if pair]
    region, account = options["region"], options["account"]
    group = f"arn:aws:elasticloadbalancing:{region}:{account}:targetgroup/sample/{now.new_id()[:16]}"
    return {
        "requestContext": {"elb": {"targetGroupArn": group}},
        "httpMethod": request["method"],
        "path": request["path"],
        "queryStringParameters": {name: value for name, _, value in pairs},
        "headers": dict(request["fields"]),
        "body": request["body"].decode(),
        "isBase64Encoded": False,
    }


def _websocket(options: Options, now: Now) -> Json:
    from gateway.edge.websocket import events

    peer = events.Peer(now.new_id()[:22], "sample", "$default", options["host"], ADDRESS, AGENT, now.seconds)
    if options["kind"] == "connect":
        return events.connect(peer, [("Host", options["host"])], "", now.uuid(), now.seconds)
    if options["kind"] == "disconnect":
        return events.disconnect(peer, 1001, "", now.uuid(), now.seconds)
    return events.message(peer, options["route"], options["body"], now.uuid(), now.new_id()[:22], now.seconds)


def _object(text: str, option: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{option} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{option} must be a JSON object")
    return value


_REGION = {"region": ("us-east-1", "AWS region.")}
_PLACE = {**_REGION, "account": ("123456789012", "AWS account.")}
_OBJECT = {"bucket": ("sample-bucket", "Bucket."), "key": ("photos/cat.jpg", "Object key, as it is called.")}
_HTTP: Mapping[str, tuple[Any, str]] = {
    "method": ("GET", "HTTP method."),
    "path": ("/", "Path, with a query behind ?."),
    "header": ([], "NAME: VALUE; may be repeated."),
    "body": ("", "The request's body."),
    "host": ("api.example.com", "The host that was called."),
}
SAMPLES: Mapping[str, Sample] = {
    "s3-put": Sample(
        "S3: an object was put.", {**_OBJECT, "size": (1024, "Bytes."), **_REGION},
        lambda options, now: _s3(options, now, "ObjectCreated:Put"),
    ),
    "s3-delete": Sample(
        "S3: an object was deleted.", {**_OBJECT, **_REGION},
        lambda options, now: _s3(options, now, "ObjectRemoved:Delete"),
    ),
    "schedule": Sample("EventBridge: a schedule fired.", {"rule": ("sample-rule", "The rule."), **_PLACE}, _schedule),
    "eventbridge": Sample(
        "EventBridge: an event of your own.",
        {
            "source": ("my.app", "Who sent it."), "type": ("Sample", "Its detail-type."),
            "detail": (BODY, "Its detail, a JSON object."), **_PLACE,
        },
        _bus,
    ),
    "http": Sample("HTTP, payload format 2.0: what functions get here.", _HTTP, _v2),
    "apigw-v2": Sample("API Gateway, HTTP API (format 2.0).", _HTTP, _v2),
    "apigw-v1": Sample("API Gateway, REST API (format 1.0).", _HTTP, _v1),
    "alb": Sample("Application Load Balancer.", {**_HTTP, **_PLACE}, _alb),
    "websocket": Sample(
        "API Gateway, WebSocket API.",
        {
            "kind": (("message", "connect", "disconnect"), "What happened."),
            "route": ("$default", "A message's route key."), "body": (BODY, "A message."), "host": _HTTP["host"],
        },
        _websocket,
    ),
    "sqs": Sample(
        "SQS: messages of a queue.",
        {"queue": ("sample-queue", "Queue."), "body": (BODY, "Each message."), "count": (1, "So many."), **_PLACE},
        _sqs,
    ),
    "sns": Sample(
        "SNS: a message of a topic.",
        {
            "topic": ("sample-topic", "Topic."), "message": (BODY, "The message."), "subject": ("", "Its subject."),
            **_PLACE,
        },
        _sns,
    ),
    "dynamodb": Sample(
        "DynamoDB: a stream's change.",
        {
            "table": ("sample-table", "Table."), "change": (("INSERT", "MODIFY", "REMOVE"), "What happened."),
            "item": ('{"id": "1", "count": 3}', "The item, plain JSON."),
            "key": ("", "Its key attribute; else the first."), **_PLACE,
        },
        _dynamodb,
    ),
    "kinesis": Sample(
        "Kinesis: a record of a stream.",
        {
            "stream": ("sample-stream", "Stream."), "data": (BODY, "The record."), "partition": ("1", "Partition key."),
            **_PLACE,
        },
        _kinesis,
    ),
    "logs": Sample(
        "CloudWatch Logs: a subscription's lines.",
        {
            "group": ("/sample/group", "Log group."), "message": ("ERROR sample", "The line."),
            "account": _PLACE["account"],
        },
        _logs,
    ),
}  # fmt: skip
