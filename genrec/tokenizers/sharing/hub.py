"""Tokenizers on a model hub: directories fetched and sent.

Owns the talk with the Hugging Face Hub and its faults. Knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from genrec.errors import ArtifactError, ModelError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UNREACHABLE = (
    "check the network, unset HF_HUB_OFFLINE where it is set, or give a directory on this machine"
)


def names_repository(source: str | Path) -> bool:
    """Whether this is a hub's OWNER/NAME: a text of that form, and no path that is here."""
    return (
        isinstance(source, str)
        and _REPOSITORY.fullmatch(source) is not None
        and not Path(source).exists()
    )


def fetch_folder(repo_id: str, revision: str | None, files: list[str]) -> Path:
    """The local copy of a repository's files, fetched unless it is there already.

    Args:
        repo_id: OWNER/NAME.
        revision: branch, tag or commit; None is the main branch.
        files: patterns of what to fetch.

    Raises:
        ArtifactError: there is no such repository or revision, or it may not be read.
        ModelError: the hub cannot be reached.
    """
    with _explain_faults(f"{repo_id!r} (no directory of that name is here)", revision):
        return Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=files)
        )


def send_folder(folder: Path, repo_id: str, *, private: bool, token: str | None) -> str:
    """Send a directory's files to a repository, made if it is new; its address.

    Args:
        folder: what to send, all of it.
        repo_id: OWNER/NAME.
        private: whether a new repository is hidden from others; one that exists stays as it is.
        token: of the account; None takes the one that `hf auth login` saved.

    Raises:
        ArtifactError: a bad name, or the account may not write there.
        ModelError: the hub cannot be reached.
    """
    if _REPOSITORY.fullmatch(repo_id) is None:
        raise ArtifactError(f"{repo_id!r} names no repository; give OWNER/NAME")
    with _explain_faults(repr(repo_id), None):
        hub = huggingface_hub.HfApi(token=token)
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Semantic IDs by genrec"
        )
    return str(address)


@contextmanager
def _explain_faults(what: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except RevisionNotFoundError as error:
        raise ArtifactError(
            f"the hub's {what} has no revision {revision!r}; name a branch, tag or commit of it"
        ) from error
    except GatedRepoError as error:
        raise ArtifactError(
            f"the hub's {what} is gated: ask for access on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ArtifactError(
            f"the hub has no repository {what}, or it is private; check the name, or log in with "
            f"`hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ArtifactError(
            f"the hub refused {what}: {error}; try again later, or log in with `hf auth login` and "
            f"an account that may do this"
        ) from error
    except (OSError, EntryNotFoundError, httpx2.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the hub cannot be asked for {what}: {reason}; {_UNREACHABLE}") from error
    except ValueError as error:
        raise ArtifactError(
            f"the hub does not accept {what}: {error}; check the name, and where it is right, log "
            f"in again with `hf auth login`"
        ) from error
