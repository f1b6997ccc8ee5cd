"""Asks for more memory than it has."""


def handler(event, context):
    hog = []
    while True:
        hog.append(bytearray(8 << 20))
