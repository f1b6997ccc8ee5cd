"""A nightly report: what a schedule runs."""

import json


def handler(event, context):
    line = {"report": event.get("kind", "by hand"), "request": context.aws_request_id}
    print(json.dumps(line))
    return line
