"""Ends in the middle of an invocation."""

import os


def handler(event, context):
    os._exit(3)
