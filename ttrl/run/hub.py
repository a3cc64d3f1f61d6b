"""An exported model's way to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from ttrl.run.model_card import CARD, HUB_NAME, RUN_KEY
from ttrl.types import UserError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Repository:
    """A place on the hub that may be written to.

    Example: ``Repository.find("me/mine", public=False).push(Path("mine"))``.
    """

    name: str
    """OWNER/NAME."""
    public: bool
    """Whether everybody may read it."""
    found: ModelInfo | None
    """What is there; None: it will be made."""

    @classmethod
    def find(cls, name: str, *, public: bool) -> Repository:
        """Look at a repository on the hub, and change nothing there.

        Raises:
            UserError: if the name is none, nobody is logged in, the hub does not answer, or others
                may read what is there than was asked for.
        """
        if not HUB_NAME.fullmatch(name):
            raise UserError(f"--push {name!r}: expected OWNER/NAME of a repository on the hub")
        with _explained(name):
            token = get_token()
        if token is None:
            raise UserError(
                "--push: nobody is logged in to the hub: set HF_TOKEN in the environment, or give "
                "`hf auth login`"
            )
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise UserError("--push: the token (HF_TOKEN) has characters that no token has")
        api = HfApi()
        with _explained(name):
            api.whoami()  # else a wrong token looks like a repository that is not there
            try:
                found = api.model_info(name)
            except RepositoryNotFoundError:
                found = None
        if found is not None and found.private is public:
            is_, ask = ("private", "leave --public out") if public else ("public", "give --public")
            raise UserError(
                f"--push {name}: that repository is {is_}: {ask}, or change that on its page"
            )
        return cls(name, public, found)

    def refuse_other(self, card: ModelCard) -> None:
        """Raise a UserError if the repository holds anything but a model of the run of ``card``."""
        if self.found is None:
            return
        there = [file.rfilename for file in self.found.siblings or ()]
        if not set(there) - {".gitattributes"}:
            return
        data = self.found.card_data
        if data is None or data.get(RUN_KEY) != card.data.get(RUN_KEY):
            raise UserError(
                f"--push {self.name}: it holds something else than this run's model, for example "
                f"{min(there)!r}; nothing was uploaded: choose another name"
            )

    def push(self, folder: Path) -> str:
        """Upload an exported model, as a commit; return its address.

        Weights that were there before under other names are removed with that commit. Whatever
        else somebody added stays. Files whose names begin with a dot are not uploaded.

        Raises:
            UserError: before anything is uploaded, if the folder is no exported model, or the
                repository holds something else; or if the hub refuses it.
        """
        card = exported_card(folder)
        _refuse_links(folder)
        self.refuse_other(card)
        api = HfApi()
        with _explained(self.name):
            head = None if self.found is None else self.found.sha
            there = [] if self.found is None else self.found.siblings or []
            weights = [
                file.rfilename
                for file in there
                if "/" not in file.rfilename and any(fnmatch(file.rfilename, w) for w in WEIGHTS)
            ]
            if self.found is None:
                api.create_repo(self.name, private=not self.public)
            done: CommitInfo = api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Upload a model by ttrl export",
                delete_patterns=[escape(name) for name in weights],
                ignore_patterns=[".*", "*/.*"],
                parent_commit=head,  # nobody else has written there meanwhile
            )
        return done.commit_url


def exported_card(folder: Path) -> ModelCard:
    """Read the card of an exported model.

    Raises:
        UserError: if the folder is none, or has no weights or card of ours.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob(WEIGHTS[0])):
        raise UserError(f"{folder} is no model: expected a config.json and .safetensors files")
    card: ModelCard | None = None
    with suppress(Exception):  # no file, no front matter, or none that is YAML
        card = ModelCard.load(folder / CARD)
    if card is None or card.data.get(RUN_KEY) is None:
        raise UserError(
            f"{folder} has no model card of `ttrl export`: name the run, and a folder to make"
        )
    return card


def _refuse_links(folder: Path) -> None:
    """Raise a UserError for a link to something outside: its content would be uploaded."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--push: {path} is a link to a file outside; nothing was uploaded")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the hub's errors into UserErrors, in which no token is, whatever the hub says."""
    try:
        yield
    except Exception as error:  # those of the HTTP client have no common kind
        said = " ".join(str(error).split())
        if token := get_token():
            said = said.replace(token, "***")
        raise UserError(f"--push {name}: the hub says: {said}") from None
