"""Runs over its time limit."""

import time


def handler(event, context):
    time.sleep(3600)
