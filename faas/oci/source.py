"""`ImageSource`: where a worker gets images from, without knowing the registry."""

from __future__ import annotations

from typing import BinaryIO, Protocol

from faas.oci.descriptor import Descriptor
from faas.oci.manifest import Manifest


class ImageSource(Protocol):
    """Read access to images. Beside the registry it is a local-path one."""

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        """The image manifest of `repository:tag` or `repository@digest`; an index is resolved to `architecture`
        (linux). Raises NotFound, or ImageUnusable where no entry fits."""
        ...

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        """A blob's bytes as a real file (it has a `fileno`), at its beginning; the caller closes it.

        Raises NotFound. The content is the registry's word: whoever unpacks it checks the digest while reading.
        """
        ...

    def is_copy(self, repository: str) -> bool:
        """Whether its images are copied from an upstream when they are asked for."""
        ...
