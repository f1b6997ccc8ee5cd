"""Cannot start: its module is not there."""

import nowhere_to_be_found


def handler(event, context):
    return nowhere_to_be_found
