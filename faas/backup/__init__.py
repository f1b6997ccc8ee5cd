"""Backups: what one holds (`manifest`), where it lies (`folder`, `archive`), how it is put back (`restoring`).

The server gives the bytes (`gateway/backup.py`); who asks for them writes and reads backups with this package.
"""
