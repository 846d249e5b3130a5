"""Where a hub model is looked for, and what is said when it is nowhere. No network is used."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from runtime import model_source
from runtime.errors import UsageError
from runtime.model_source import find_local, find_model
from runtime.plan import make_plan
from runtime.settings import Settings
from tests.runtime.command import copy_of_demo, refusal

HUB_ID = "someone/some-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "user-cache"


def cached(cache: Path, *, commit: str = COMMIT, ref: str = "main") -> Path:
    """A cache with one snapshot of the demo model, as huggingface_hub lays it out."""
    root = cache / "models--someone--some-model"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    return copy_of_demo(root / "snapshots" / commit)


def found(**settings: Any) -> Path | None:
    return find_local(Settings(**{"model": HUB_ID} | settings)).folder


def test_a_folder_is_taken_as_it_is_and_the_demo_without_one(tmp_path: Path) -> None:
    folder = copy_of_demo(tmp_path / "mine")
    assert find_model(Settings(model=str(folder)), print) == ("mine", folder)
    assert find_local(Settings()).name == "runtime-demo"


def test_a_folder_named_like_a_hub_id_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    cached(user_cache)
    copy_of_demo(tmp_path / HUB_ID)
    monkeypatch.chdir(tmp_path)
    assert found() == Path(HUB_ID)
    with pytest.raises(UsageError, match=f"--revision 'main' with the folder --model '{HUB_ID}': allowed: with a hub"):
        found(revision="main")


def test_the_users_cache_is_searched_and_the_model_keeps_its_id(user_cache: Path) -> None:
    folder = cached(user_cache)
    told: list[str] = []
    plan = make_plan(Settings(model=HUB_ID, device="cpu"), told.append)
    assert (plan.name, plan.folder) == (HUB_ID, folder)
    assert told == [f"Found {HUB_ID} in {folder}"]
    assert make_plan(Settings(model=HUB_ID, device="cpu", served_model_name="mine")).name == "mine"


def test_the_download_folder_comes_before_the_users_cache(tmp_path: Path, user_cache: Path) -> None:
    in_user_cache = cached(user_cache)
    downloads = tmp_path / "downloads"
    assert found(download_dir=str(downloads)) == in_user_cache
    in_cache_layout = cached(downloads)
    assert found(download_dir=str(downloads)) == in_cache_layout
    by_name = copy_of_demo(downloads / "some-model")
    assert found(download_dir=str(downloads)) == by_name
    by_id = copy_of_demo(downloads / HUB_ID)
    assert found(download_dir=str(downloads)) == by_id


def test_a_revision_is_a_ref_or_a_commit_of_the_cache_and_never_a_plain_folder(
    tmp_path: Path, user_cache: Path
) -> None:
    copy_of_demo(tmp_path / HUB_ID)
    cached(user_cache)
    older = cached(user_cache, commit="f" * 40, ref="v1")
    assert found(revision="v1", download_dir=str(tmp_path)) == older
    assert found(revision="f" * 40) == older
    assert found(revision="v2") is None


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_snapshot_that_lacks_something_is_not_taken(user_cache: Path, missing: str) -> None:
    (cached(user_cache) / missing).unlink()
    assert found() is None


def test_a_snapshot_that_lacks_a_shard_is_not_taken(user_cache: Path) -> None:
    folder = cached(user_cache)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert found() is None
    (folder / "model-2.safetensors").touch()
    assert found() == folder


@pytest.mark.parametrize(
    "name", ["/no/such", "../up", "a/b/c", "name", "a--b/c", "a b/c", "-a/b", "~/models/x", "a/b.git", "a/" + "b" * 200]
)
def test_what_can_be_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no such folder, and not a hub id; allowed: a model folder, or a hub id"):
        find_local(Settings(model=name))


@pytest.mark.parametrize("settings", [{"model": "~no-such-user/x"}, {"download_dir": "~no-such-user"}])
def test_a_home_of_nobody_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^--(model|download-dir) '~no-such-user.*': no such user; allowed: a folder"):
        found(**settings)


def test_a_download_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--download-dir '.*file': not a folder; allowed: a folder"):
        found(download_dir=str(tmp_path / "file"))


class Hub:
    """In place of the hub: says whether it has the model, and writes it into a cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], None] = lambda: None) -> None:
        self.downloads: list[dict[str, Any]] = []
        self.answer = answer
        real = huggingface_hub.snapshot_download

        def snapshot_download(repo: str, **options: Any) -> str:
            if options["local_files_only"]:
                return str(real(repo, **options))
            self.downloads.append(options)
            return str(cached(Path(options["cache_dir"] or constants.HF_HUB_CACHE)))

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: self.answer())


def test_what_is_nowhere_is_downloaded_once_and_only_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    settings = Settings(model=HUB_ID, download_dir=str(tmp_path / "new"))
    told: list[str] = []
    _, folder = find_model(settings, told.append)
    assert told == [f"Downloading {HUB_ID} to {tmp_path / 'new'}", f"Found {HUB_ID} in {folder}"]
    (asked,) = hub.downloads
    assert asked["cache_dir"] == tmp_path / "new"
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.py" not in asked["allow_patterns"]
    assert find_model(settings, told.append)[1] == folder
    assert len(hub.downloads) == 1


def test_code_is_downloaded_only_where_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    find_model(Settings(model=HUB_ID, trust_remote_code=True), print)
    assert "*.py" in hub.downloads[0]["allow_patterns"]


def raises(error: Exception) -> Callable[[], None]:
    def answer() -> None:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("Name or service\nnot known"), r"it cannot be downloaded \(Name or service not known\)"),
        (RuntimeError(), r"it cannot be downloaded \(RuntimeError\)"),
    ],
)
def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    Hub(monkeypatch, raises(error))
    with pytest.raises(UsageError, match=f"^--model '{HUB_ID}': .*{told}; allowed: a model folder, or a hub id") as no:
        find_model(Settings(model=HUB_ID), print)
    assert "\n" not in str(no.value)


def test_a_hub_that_never_answers_is_left_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "ANSWER_LIMIT_S", 0.01)
    never = threading.Event()
    Hub(monkeypatch, lambda: None if never.wait(60) else None)
    with pytest.raises(UsageError, match=r"no answer within 0.01 s"):
        find_model(Settings(model=HUB_ID), print)
    never.set()


@pytest.mark.timeout(100)
def test_the_command_without_a_hub_ends_with_one_line(tmp_path: Path) -> None:
    """Name resolution fails, or a server that is not there refuses: whichever, no traceback."""
    line = refusal("up", "--model", HUB_ID, HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert "it cannot be downloaded" in line
