"""Where the model is: a folder as it is given, or the folder in which a model of the Hugging Face hub lies.

A hub id is looked for locally first: under the download folder (as plain folder, then in the layout of the Hugging
Face cache), then in the Hugging Face cache itself. What is found there is used without asking the hub whether it is
the newest. Only then the files that are needed are downloaded. Once per start, before the port is taken.
"""

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runtime.demo import MODEL_DIR
from runtime.errors import UsageError
from runtime.settings import DEMO_NAME, Settings

ANSWER_LIMIT_S = 20.0
"""What the hub gets to say whether it has the model; name resolution knows no limit of its own."""

NEEDED_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer*", "merges.txt", "vocab.*")
CODE_FILES = ("*.py",)
_SUBFOLDERS = ("*/*",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ALLOWED = "a model folder, or a hub id ORG/NAME that is in a cache or can be downloaded"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What `--model` names. `folder` is None for a hub model that is not on this machine yet."""

    name: str
    folder: Path | None
    is_hub: bool = False


def find_local(settings: Settings) -> Source:
    """The model as far as it is on this machine; nothing is downloaded. Raises UsageError for what cannot be one."""
    if settings.model is None:
        return Source(name=DEMO_NAME, folder=MODEL_DIR)
    folder = _path("--model", settings.model)
    if folder.is_dir():
        if settings.revision is not None:
            raise UsageError(
                f"--revision {settings.revision!r} with the folder --model {settings.model!r}: allowed: with a hub id"
            )
        return Source(name=folder.resolve().name, folder=folder)
    if not _is_hub_id(settings.model):
        raise UsageError(f"--model {settings.model!r}: no such folder, and not a hub id; allowed: {_ALLOWED}")
    return Source(name=settings.model, folder=_plain(settings) or _cached(settings), is_hub=True)


def find_model(settings: Settings, say: Callable[[str], None]) -> tuple[str, Path]:
    """The model's own name and its folder, downloaded if need be; `say` is told where a hub model lies.

    Raises UsageError.
    """
    source = find_local(settings)
    folder = source.folder or _download(settings, say)
    if source.is_hub:
        say(f"Found {source.name} in {folder}")
    return source.name, folder


def _is_hub_id(text: str) -> bool:
    if not _HUB_ID.fullmatch(text):
        return False
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:  # its own rules: a length, some endings, no doubled dots or dashes
        return False
    return True


def _plain(settings: Settings) -> Path | None:
    """A folder with the files themselves; which revision they are is unknown, so none may be asked for."""
    if settings.download_dir is None or settings.revision is not None or settings.model is None:
        return None
    root = _folder(settings.download_dir)
    found = (root / settings.model, root / settings.model.split("/")[1])
    return next((path for path in found if (path / "config.json").is_file()), None)


def _cached(settings: Settings) -> Path | None:
    """The snapshot of an earlier download: in the download folder, else in the Hugging Face cache."""
    for cache in dict.fromkeys((settings.download_dir, None)):
        try:
            path = Path(_snapshot(settings, cache, local_files_only=True))
        except FileNotFoundError:  # nothing there, or only a part of it
            continue
        except OSError as error:
            raise _missing(settings, f"a cache cannot be read ({error.strerror or error})") from None
        if _is_whole(path):
            return path
    return None


def _is_whole(folder: Path) -> bool:
    """Whether an earlier download, perhaps another program's, brought all that is needed: then no hub is asked."""
    index = folder / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else {"*.safetensors"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return all(any(folder.glob(name)) for name in ("config.json", "tokenizer.json", *shards))


def _download(settings: Settings, say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise _missing(settings, "HF_HUB_OFFLINE forbids to download it")
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    try:
        # Asked first and within a limit: a download as such may take as long as its size asks for.
        _within(ANSWER_LIMIT_S, lambda: HfApi().model_info(str(settings.model), revision=settings.revision))
        say(f"Downloading {settings.model} to {_download_folder(settings)}")
        return Path(_snapshot(settings, settings.download_dir, local_files_only=False))
    except RevisionNotFoundError:
        raise _missing(settings, f"the hub has no revision {settings.revision or 'main'!r} of it") from None
    except RepositoryNotFoundError:
        raise _missing(settings, "the hub does not show it (there is none, or it needs a token: $HF_TOKEN)") from None
    except Exception as error:  # the hub's client lets errors of several HTTP libraries and of the disk through
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _missing(settings, f"it cannot be downloaded ({reason})") from None


def _snapshot(settings: Settings, cache: str | None, *, local_files_only: bool) -> str:
    from huggingface_hub import snapshot_download

    path: str = snapshot_download(
        str(settings.model),
        revision=settings.revision,
        cache_dir=None if cache is None else _folder(cache),
        allow_patterns=[*NEEDED_FILES, *(CODE_FILES if settings.trust_remote_code else ())],
        ignore_patterns=list(_SUBFOLDERS),
        local_files_only=local_files_only,
    )
    return path


def _within(limit_s: float, call: Callable[[], Any]) -> None:
    """Makes the call in a thread that is left behind when it takes too long. Raises what it raises."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    if ended[0] is not None:
        raise ended[0]


def _download_folder(settings: Settings) -> Path:
    if settings.download_dir is not None:
        return _folder(settings.download_dir)
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(download_dir: str) -> Path:
    path = _path("--download-dir", download_dir)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--download-dir {download_dir!r}: not a folder; allowed: a folder, made if need be")
    return path


def _path(flag: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{flag} {text!r}: no such user; allowed: a folder") from None


def _missing(settings: Settings, reason: str) -> UsageError:
    places = "" if settings.download_dir is None else f"--download-dir {settings.download_dir!r} or "
    asked = "" if settings.revision is None else f" at --revision {settings.revision!r}"
    return UsageError(
        f"--model {settings.model!r}{asked}: no such folder, not whole in {places}the Hugging Face cache, "
        f"and {reason}; allowed: {_ALLOWED}"
    )
