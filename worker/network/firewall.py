"""The firewall of instances behind a bridge that is not ours (a Docker network): out, but to nothing of this host."""

from __future__ import annotations

from worker.network.programs import attempt, run


class BridgeFirewall:
    """One table for one bridge: no address of the host, no link-local (cloud metadata), nothing inward."""

    def __init__(self, table: str, bridge: str) -> None:
        self._table = table
        self._bridge = bridge

    def open(self) -> None:
        """Blocking. Raises Unavailable."""
        self.close()
        link = f'"{self._bridge}"'
        run(
            ["nft", "-f", "-"],
            f"""
table inet {self._table} {{
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname {link} drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname {link} ip daddr {{ 127.0.0.0/8, 169.254.0.0/16 }} drop
        iifname {link} oifname {link} drop
        iifname {link} meta nfproto ipv6 drop
    }}
}}
""",
        )

    def close(self) -> None:
        """Blocking. No error where it is absent."""
        attempt(["nft", "delete", "table", "inet", self._table])
