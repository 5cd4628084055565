"""Files of the Hugging Face Hub, named ``hf://org/model@revision/file``.

huggingface_hub downloads them, with its cache, token, endpoint and offline mode. Without a revision
the branch ``main`` is meant, without a file the only one of its kind. A process resolves an id
once, so that a branch that moves meanwhile does not mix two commits. What a reader needs beside a
file, it fetches with `fetch_beside`; nothing else is downloaded.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from quantlab.text import first_few, near_misses, require_packages

PACKAGE = "huggingface_hub"
ID = re.compile(
    r"hf://?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^@/]+))?"
    r"(/(?P<name>.+))?"
)
SHARD = re.compile(r"-(?P<number>\d{5})-of-\d{5}(?=\.)")
DEFAULTS = ("model.safetensors.index.json", "model.safetensors", "onnx/model.onnx")
NAMED_FILES = 5  # of a repository, in one message
MAX_BESIDE_BYTES = 2**24  # of another file of a repository that is read whole


class HubError(ValueError):
    """A fault of a file of the hub, as the rest of a sentence that begins with its id."""


class HubFile(NamedTuple):
    """A file of a repository at the commit of a revision, and its path in the cache."""

    repo: str
    revision: str
    commit: str
    name: str
    path: str

    @property
    def snapshot(self) -> Path:
        """The directory of the cache that has the files of this commit."""
        return Path(self.path.removesuffix(self.name))


class RemoteFile(NamedTuple):
    """A file of one commit that stays on the hub; `size` is in bytes."""

    repo: str
    commit: str
    name: str
    size: int

    @classmethod
    def find(cls, path: str | Path, suffixes: Sequence[str]) -> "RemoteFile":
        """Look up the file of an id; raises ValueError as `locate` does."""
        key = _normalize(path)
        with explained(key):
            return cls._look_up(parse_id(key)[0], *_resolve(key, suffixes))

    @classmethod
    def _look_up(cls, repo: str, revision: str, name: str) -> "RemoteFile":
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        about = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
        return cls(repo, about.commit_hash or revision, name, about.size or 0)

    @property
    def id(self) -> str:
        """The id of this very file."""
        return f"hf://{self.repo}@{self.commit}/{self.name}"

    def beside(self, name: str) -> "RemoteFile":
        """Look up another file of the same directory; raises errors of huggingface_hub."""
        return self._look_up(self.repo, self.commit, str(Path(self.name).with_name(name)))

    def read_beside(self, name: str) -> bytes | None:
        """Read another file of the same directory, None where there is none."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            other = self.beside(name)
        except RemoteEntryNotFoundError:
            return None
        return other.read(0, min(other.size, MAX_BESIDE_BYTES))

    def read(self, start: int, stop: int) -> bytes:
        """Read a range of bytes; raises errors of huggingface_hub."""
        from huggingface_hub import get_session, hf_hub_url

        utils: Any = import_module("huggingface_hub.utils")  # its types hide what it documents
        url = hf_hub_url(self.repo, self.name, revision=self.commit)
        headers = {**utils.build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        content = bytearray()
        with get_session().stream("GET", url, headers=headers) as response:
            utils.hf_raise_for_status(response)
            # A server that knows no ranges sends the file from its start.
            before = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else start
            for chunk in response.iter_bytes():
                content += chunk[before:]
                before = max(before - len(chunk), 0)
                if len(content) >= stop - start:
                    break
        return bytes(content[: stop - start])


_located: dict[tuple[str, ...], HubFile] = {}  # by the ids and suffixes that are resolved


def is_hub_id(path: str | Path) -> bool:
    """Test whether a path names a file of the hub; a `Path` has lost one of its slashes."""
    return str(path).startswith("hf:/")


def locate(path: str | Path, suffixes: Sequence[str]) -> str:
    """Download the file of an id unless it is in the cache; return its path there.

    `suffixes` are those of the files that an id without one may mean. Raises ValueError with what
    to do where it cannot be had.
    """
    key = _normalize(path)
    place = key, *suffixes
    if place not in _located:
        repo, revision, _ = parse_id(key)
        with explained(key):
            commit, name = _resolve(key, suffixes)
            copy = _download(repo, commit, name)
        commit = Path(copy.removesuffix(name)).name  # of the directory in the cache
        _located[place] = HubFile(repo, revision, commit, name, copy)
    return _located[place].path


def _normalize(path: str | Path) -> str:
    return re.sub("^hf:/+", "hf://", str(path))


def _resolve(key: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """Return the commit of an id, or its revision where that is not known yet, and its file."""
    repo, revision, name = parse_id(key)
    commits = (f.commit for f in _located.values() if (f.repo, f.revision) == (repo, revision))
    commit = next(commits, revision)
    return commit, name or _choose_file(key, _list_files(repo, commit), suffixes)


def find_located(key: str) -> list[HubFile]:
    """List the files of one commit that this process has resolved an id to."""
    return [file for (located, *_), file in _located.items() if located == key]


def has_located() -> bool:
    """Test whether this process has resolved an id."""
    return bool(_located)


def find_origin(path: str | Path) -> HubFile | None:
    """Return the file of the hub that has this path in the cache, None of any other path."""
    return next((file for file in _located.values() if file.path == str(path)), None)


def fetch_beside(path: str | Path) -> None:
    """Download a file of a snapshot that this process reads, if its repository has it.

    Nothing is done for any other path. Raises ValueError where it cannot be had.
    """
    file = next((f for f in _located.values() if Path(path).is_relative_to(f.snapshot)), None)
    if file is None or ".." in Path(path).parts or Path(path).exists():
        return
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name = Path(path).relative_to(file.snapshot).as_posix()
    key = f"hf://{file.repo}@{file.revision}/{name}"
    if try_to_load_from_cache(file.repo, name, revision=file.commit) is _CACHED_NO_EXIST:
        return
    # What is missing is optional, or its reader says so.
    with explained(key), suppress(RemoteEntryNotFoundError):
        _download(file.repo, file.commit, name)


def pin_ids(value: Any, commits: Mapping[str, str]) -> Any:
    """Replace the revisions of ids in nested settings by commits."""
    if isinstance(value, Mapping):
        return {key: pin_ids(item, commits) for key, item in value.items()}
    if isinstance(value, list):
        return [pin_ids(item, commits) for item in value]
    if not isinstance(value, str) or value not in commits:
        return value
    repo, _, name = parse_id(value)
    return f"hf://{repo}@{commits[value]}{f'/{name}' if name else ''}"


def find_ids(value: Any) -> Iterator[str]:
    """Yield the ids in nested settings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from find_ids(item)
    elif isinstance(value, str) and is_hub_id(value):
        yield value


def parse_id(path: str) -> tuple[str, str, str | None]:
    """Split an id into repository, revision and file; raises ValueError if it is none.

    >>> parse_id("hf://org/model@refs/pr/1/q4.gguf")
    ('org/model', 'refs/pr/1', 'q4.gguf')
    >>> parse_id("hf://org/model")
    ('org/model', 'main', None)
    """
    match = ID.fullmatch(path)
    if not match or match["repo"].startswith(("datasets/", "spaces/")):
        raise ValueError(f"{path} names no model of the hub: write hf://ORG/MODEL@REVISION/FILE")
    return match["repo"], match["revision"] or "main", match["name"]


def _download(repo: str, revision: str, name: str) -> str:
    """Return the path of a file in the cache; raises HubError where it arrived damaged."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=revision)
    path = hf_hub_download(repo, name, revision=revision)
    if path != cached:
        _require_intact(Path(path))
    return path


def _require_intact(path: Path) -> None:
    """Raise HubError, and drop the file, unless its hash is the one that the hub has named.

    A file of LFS is named by its sha256 in the cache, one of git by the sha1 of git's blob.
    """
    etag = path.readlink().name if path.is_symlink() else ""
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return
    with path.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != etag:
        path.resolve().unlink()
        path.unlink()
        raise HubError("it arrived damaged, with another hash than the hub names: try again")


def _list_files(repo: str, revision: str) -> list[str]:
    """List the files of a repository; without a network those in the cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return list(HfApi().list_repo_files(repo, revision=revision))
    except HfHubHTTPError:
        raise
    except Exception as reason:  # of the network, whose errors are those of several packages
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise reason from None
        files = (path for path in folder.rglob("*") if path.is_file())
        return [path.relative_to(folder).as_posix() for path in files]


def _choose_file(key: str, names: Sequence[str], suffixes: Sequence[str]) -> str:
    """Choose the file that an id without one means; raises HubError where that is open."""
    endings = [".safetensors.index.json" if end == ".json" else end for end in suffixes]
    matching = sorted(name for name in names if name.endswith(tuple(endings)))
    indexed = {name.partition(".index.json")[0] for name in matching if name.endswith(".json")}
    files = [name for name in matching if not _is_later_shard(name, indexed)]
    default = next((name for name in DEFAULTS if name in files), None)
    if default or len(files) == 1:
        return default or files[0]
    if not files:
        raise HubError(f"it holds no file with one of the suffixes {', '.join(suffixes)}")
    listed = ", ".join(first_few(files, NAMED_FILES))
    raise HubError(f"it holds {len(files)} files ({listed}): name one, as in {key}/{files[0]}")


def _is_later_shard(name: str, indexed: set[str]) -> bool:
    """Test for a file that another one stands for: the index, or the first of a split file."""
    match = SHARD.search(name)
    if not match:
        return False
    return SHARD.sub("", name) in indexed or int(match["number"]) > 1


@contextmanager
def explained(key: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a sentence that says what to do."""
    require_packages((PACKAGE,), f"reading {key}")
    from huggingface_hub import constants, errors

    repo, revision, name = parse_id(key)
    try:
        yield
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        reason = f"is gated: accept its terms at {page}, then log in with hf auth login"
    except errors.RepositoryNotFoundError:
        reason = "does not exist or is private: check the name, or log in with hf auth login"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision}: name a branch, a tag or a commit"
    except errors.RemoteEntryNotFoundError:
        reason = f"has no such file: {near_misses(name or '', _list_files(repo, revision))}"
    except errors.HfHubHTTPError as error:
        reason = f"cannot be had, the hub answers {error.response.status_code}: try again later"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = _describe_unreachable(error)
    except (HubError, errors.HFValidationError) as error:
        reason = f"cannot be read: {error}"
    except ValueError:
        raise
    except Exception as error:  # of the network or the disk, and of several packages
        text = " ".join(str(error).split()) or repr(error)
        reason = f"cannot be downloaded ({text}): try again, what is in the cache stays there"
    else:
        return
    raise ValueError(f"{key} {reason}") from None


def _describe_unreachable(error: Exception) -> str:
    if is_offline():
        return "is not in the cache, and HF_HUB_OFFLINE is set: unset it, or download the file once"
    cause = " ".join(str(error.__cause__ or error).split())
    return f"cannot be reached ({cause}), and the file is not in the cache: check the network"


def is_offline() -> bool:
    """Test whether the offline mode of huggingface_hub is on."""
    from huggingface_hub import constants

    return constants.is_offline_mode()
