"""The URLs from which models are fetched."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from urllib.parse import quote, urlsplit

from clockwork.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class SchemeLibrary:
    """The library that reads the URLs of a scheme."""

    modules: tuple[str, ...]
    extra: str  # extra of this distribution that installs the modules
    file: str  # an example of a URL


LIBRARIES = {
    "s3": SchemeLibrary(("fsspec", "s3fs"), "s3", "s3://bucket/resnet50.onnx"),
    "gs": SchemeLibrary(("fsspec", "gcsfs"), "gs", "gs://bucket/resnet50.onnx"),
    "az": SchemeLibrary(("fsspec", "adlfs"), "az", "az://container/resnet50.onnx"),
    "hf": SchemeLibrary(("fsspec", "huggingface_hub"), "hf", "hf://owner/repository/onnx/model.onnx"),
    "http": SchemeLibrary(("fsspec", "aiohttp"), "http", "http://server/resnet50.onnx"),
    "https": SchemeLibrary(("fsspec", "aiohttp"), "http", "https://server/resnet50.onnx"),
}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """A place of files: a bucket's prefix, a repository of the Hub, a folder of an HTTP server; or a single
    file."""

    url: str  # URL with credentials, if the user gave any
    scheme: str

    def __str__(self) -> str:
        """Return the URL for people, logs and the controller: without passwords, and without a query, which
        may be a signature."""
        parts = urlsplit(self.url)
        return f"{self.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if self.is_http else self.url

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def name(self) -> str:
        """Last part of the path."""
        path = urlsplit(self.url).path if self.is_http else self.url
        return path.rstrip("/").rpartition("/")[2]

    def file(self, path: str) -> str:
        """Return the URL of a file below this folder."""
        return f"{self.url.rstrip('/')}/{quote(path) if self.is_http else path}"

    def beside(self, path: str) -> str:
        """Return the URL of a file in the folder of this file."""
        if self.is_http:
            parts = urlsplit(self.url)
            folder = parts.path.rpartition("/")[0]
            return parts._replace(path=f"{folder}/{quote(path)}").geturl()
        return f"{self.url.rpartition('/')[0]}/{path}"

    def hide(self, text: str) -> str:
        """Return a library's message without the secrets that __str__() leaves out."""
        parts = urlsplit(self.url)
        for secret in (parts.query, parts.netloc.rpartition("@")[0]) if self.is_http else ():
            if secret:
                text = text.replace(secret, "...")
        return text


def location_of(text: str) -> Location | None:
    """Return the location that a URL names. None: the text is a path. Raises ConfigError for other kinds of
    URLs."""
    found = _URL.fullmatch(text)
    if found is None:
        return None
    scheme = found[1].lower()
    if scheme not in LIBRARIES:
        known = ", ".join(f"{scheme}://" for scheme in LIBRARIES)
        raise ConfigError(f"{scheme}:// is no source of models; there are {known} and paths")
    rest = found[2]
    if not rest.split("/")[0] or not rest.isprintable():
        raise ConfigError(f"{text!r} is no URL of a source, such as {LIBRARIES[scheme].file}")
    return Location(f"{scheme}://{rest}", scheme)


def require_library(location: Location) -> None:
    """Raise ConfigError, with the command to install it, if the library that reads a location is missing."""
    library = LIBRARIES[location.scheme]
    missing = [name for name in library.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{location.scheme}:// needs {' and '.join(missing)}: "
            f"pip install 'clockwork-serving[{library.extra}]'"
        )
