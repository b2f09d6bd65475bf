"""Files of Hugging Face's hub, by huggingface_hub: a repository's weights in the local cache, and uploads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.schema import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, refuse_shards, some

_CARD = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.pth)(?<!\.safetensors)(/[^/].*\.(pth|safetensors))?")


def is_hub_id(source: str) -> bool:
    """Whether `source` is an "owner/name", or an "owner/name/file" of weights."""
    return _HUB_ID.fullmatch(source) is not None


def hub_path(source: str, *, revision: str | None = None, **options: Any) -> Path:
    """The local path of a repository's checkpoint folder or lone file of weights, downloaded into the hub's cache.

    Args:
        source: "owner/name" or "owner/name/file.pth"; without network it is read from the cache.
        revision: a branch, tag or commit; None means the main branch.
        options: of `huggingface_hub.hf_hub_download`, such as token and cache_dir.

    Raises:
        CheckpointError: the hub has no such repository, file or revision, or several files of weights; or it cannot be
            reached and the cache has none.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    owner, name, *rest = source.split("/", 2)
    repository = f"{owner}/{name}"
    options["revision"] = revision
    try:
        if rest:
            return Path(hf_hub_download(repository, rest[0], **options))
        try:
            folder = Path(hf_hub_download(repository, CONFIG_FILE, **options)).parent
            if "subfolder" not in options:  # the commit, so that both files are of one
                options["revision"] = folder.name
            return Path(hf_hub_download(repository, WEIGHTS_FILE, **options)).parent
        except LocalEntryNotFoundError as error:
            names = _cached_names(repository, revision, options.get("cache_dir"), error)
        except EntryNotFoundError:
            names = HfApi(token=options.get("token")).list_repo_files(repository, revision=revision)
        files = [file for file in names if file.endswith((".pth", ".safetensors"))]
        if len(files) == 1:
            return Path(hf_hub_download(repository, files[0], **{**options, "subfolder": None, "revision": revision}))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise CheckpointError(
            f"{source}: expected a path that exists or a hub id, got neither: there is no such path, and the hub says: "
            f"{error}"
        ) from error
    refuse_shards(source, files)
    raise CheckpointError(
        f"{source}: expected {CONFIG_FILE} and {WEIGHTS_FILE} or one file of weights, got {some(files)}; name one, as "
        f"{source}/FILE"
    )


def _cached_names(
    repository: str, revision: str | None, cache_dir: str | Path | None, unreachable: OSError
) -> list[str]:
    """The files of a repository in the local cache; raises `unreachable` if there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except LocalEntryNotFoundError:
        raise unreachable from None
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def push_model(
    save: Callable[..., None], repo_id: str, *, card: ModelCard | None, extension: str | None, **options: Any
) -> str:
    """Uploads what a model's `save_pretrained`, `save`, writes; arguments and errors as `BGPT.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder, hf=True, extension=extension, card=ModelCard(repo_id) if card is None else card)
        return push_folder(folder, repo_id, keep_card=card is None, **options)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    keep_card: bool = True,
) -> str:
    """Uploads a folder as one commit to a model repository, which is created if there is none.

    Args:
        folder: its files are uploaded; others in the repository stay.
        repo_id: "owner/name".
        private: whether a new repository is private; None means the owner's default.
        token: of the hub; None means the one that is stored on this machine.
        revision: branch, created if there is none; None means the main one.
        commit_message: None means "Upload model".
        create_pr: True opens a pull request instead of committing to the branch.
        keep_card: whether a README.md that the repository has stays.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        CheckpointError: the hub cannot be reached or refuses, e.g. without a token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        has_card = keep_card and api.file_exists(repo_id, _CARD, revision=revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Upload model",
            create_pr=create_pr,
            ignore_patterns=[_CARD] if has_card else None,
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"push_to_hub: {repo_id}: expected a repository that may be written to, got: {error!s:.500}; log in with "
            "`hf auth login`, or give a token"
        ) from error
    return commit.pr_url or commit.commit_url
