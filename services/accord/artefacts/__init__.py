"""The store of adapter versions: names, manifests, sha256, lineage. No torch."""

from accord.artefacts.manifest import FileEntry, Manifest
from accord.artefacts.names import AdapterName
from accord.artefacts.store import ArtefactStore, cache_folder

__all__ = ["AdapterName", "ArtefactStore", "FileEntry", "Manifest", "cache_folder"]
