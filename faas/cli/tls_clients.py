"""What other machines need to reach a server that has a certificate: exact lines, one thing each."""

from __future__ import annotations

from collections.abc import Iterator

CLIENTS_CA = "$HOME/.config/faas/ca.crt"  # where `faas login` keeps it


def lines(api: str, public: str, registry: str, fingerprint: str) -> Iterator[str]:
    """`api` and `public` are URLs, `registry` host:port; `fingerprint` of the CA, or "" where everybody knows it."""
    if not fingerprint:
        yield f"faas      faas login {api}"
        yield f"docker    docker login {registry} -u admin"
        yield f"curl      curl {public}/function/hello"
        return
    yield f"faas      faas login {api} --ca-fingerprint {fingerprint}"
    yield "          it keeps the CA's certificate, which the next lines need:"
    yield f"          CA={CLIENTS_CA}"
    yield f"docker    sudo install -Dm644 $CA /etc/docker/certs.d/{registry}/ca.crt && docker login {registry} -u admin"
    yield "          podman, buildah and skopeo read that folder too"
    yield f"curl      curl --cacert $CA {public}/function/hello"
    yield "pip       export PIP_CERT=$CA    or pip install --cert $CA …"
    yield "npm       export NODE_EXTRA_CA_CERTS=$CA    node's own programs too"
    yield "boto3     export AWS_CA_BUNDLE=$CA    or boto3.client(…, verify=that file)"
    yield "python    export SSL_CERT_FILE=$CA REQUESTS_CA_BUNDLE=$CA"
