"""Several LoRA adapters over one model in memory, of which one is in use at a time.

Owns how adapters are laid over a base, which of them runs, and that their weights fit it. Knows
neither catalogues nor where the directories came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open

from genrec.errors import ModelError, join_problems
from genrec.manifest import read_json

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PICKLED = ("adapter_model.bin", "adapter_model.pt")
_HELD = "_genrec_adapters"
_MOST_NAMED = 3


class Adapters:
    """The adapters of one model; outside of `use` it runs as trained, or with the one to `keep`."""

    def __init__(self, model: Any, own: Path | None, folders: Mapping[str, Path]) -> None:
        """Lay adapters over a model, whose layers are changed in place.

        Args:
            model: the base: a plain Hugging Face model with its head.
            own: the adapter that makes the base the model as trained; None where the base is it.
            folders: the others by the names that requests say.

        Raises:
            ModelError: weights that are pickled, unreadable, or do not fit the base; all of them.
        """
        labels = {f"adapter {name!r}": folder for name, folder in folders.items()}
        if own is not None:
            labels["the model's own adapter"] = own
        problems = [
            f"{label} ({folder}): {fault}"
            for label, folder in labels.items()
            for fault in find_file_faults(folder)
        ]
        if problems:
            raise ModelError(join_problems("adapters that cannot be used", problems))
        _load_all(model, labels)
        self._layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        # A name of the user's may hold a dot, which torch allows in no module's name.
        self._keys: dict[str | None, str | None] = {
            name: _name_key(number) for number, name in enumerate(folders)
        }
        self._keys[None] = None if own is None else _name_key(len(folders))
        self._is_used = False
        self.keep(None)
        vars(model)[_HELD] = self

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that may be used."""
        return tuple(name for name in self._keys if name is not None)

    @property
    def current(self) -> str | None:
        """The adapter that the model runs with now; None is the model as trained."""
        return self._current

    def keep(self, name: str | None) -> None:
        """Run with an adapter from now on, outside of blocks too."""
        self._kept = name
        self._switch(name)

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """A block in which the model runs with an adapter; None is the model as trained.

        Blocks do not nest: one thread runs the model, with one adapter at a time.
        """
        assert not self._is_used, "an adapter is in use; end its block first"
        assert name in self._keys, f"{name!r} is no adapter; requests are checked before"
        self._is_used = True
        try:
            self._switch(name)
            yield
        finally:
            self._is_used = False
            self._switch(self._kept)

    def _switch(self, name: str | None) -> None:
        key = self._keys[name]
        active = [] if key is None else [key]
        for layer in self._layers:
            # What PEFT's set_adapter does in the end; on its way there it looks at all weights,
            # which takes 0.1 ms a layer where this takes none.
            layer._active_adapter = active
        self._current: str | None = name


def find_adapters(model: Any) -> Adapters | None:
    """The adapters that lie over a model; None without any."""
    found: Adapters | None = vars(model).get(_HELD)
    return found


def find_file_faults(folder: Path) -> list[str]:
    """What keeps an adapter's directory from being used, one sentence each."""
    pickled = [name for name in _PICKLED if (folder / name).is_file()]
    if not (folder / WEIGHTS_FILE).is_file():
        if pickled:
            return [
                f"its weights ({pickled[0]}) are pickled, which can run any program; save them as "
                f"{WEIGHTS_FILE} with PEFT's save_pretrained"
            ]
        return [f"it has no {WEIGHTS_FILE}; give a directory that `genrec train` wrote"]
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"its {CONFIG_FILE} names no LoRA adapter (peft_type is {kind!r}); train one"]
    if config.get("trainable_token_indices") or config.get("modules_to_save"):
        return [
            "it has token rows or whole layers of its own, which cannot lie over a shared base; "
            "train it with token_rows: frozen, or serve its merged checkpoint by itself"
        ]
    return []


def _name_key(number: int) -> str:
    return f"adapter{number}"


def _load_all(model: Any, folders: Mapping[str, Path]) -> None:
    """Put the layers of adapters into a model."""
    adapted: Any = None
    problems: list[str] = []
    for number, (label, folder) in enumerate(folders.items()):
        key, words = _name_key(number), {"autocast_adapter_dtype": False}
        try:
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=key, **words)
            else:
                adapted.load_adapter(str(folder), key, **words)
            strange = _find_strange(adapted, key, folder)
        except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
            lines = str(error).split("\n")
            strange = [lines[min(1, len(lines) - 1)].strip()]  # the first says where it was raised
        if strange:
            named = ", ".join(strange[:_MOST_NAMED])
            more = f" and {len(strange) - _MOST_NAMED} more" if len(strange) > _MOST_NAMED else ""
            problems.append(f"{label} ({folder}): {named}{more}; it is of another base")
    if problems:
        raise ModelError(join_problems("adapters that do not fit the model", problems))
    adapted.eval()


def _find_strange(adapted: PeftModel, key: str, folder: Path) -> list[str]:
    """Weights that the base has no place for, places without weights, and changes to the head."""
    with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as weights:
        found = set(weights.keys())
    wanted = set(get_peft_model_state_dict(adapted, adapter_name=key, save_embedding_layers=False))
    base = adapted.get_base_model()
    ends = {base.get_input_embeddings(), base.get_output_embeddings()}
    # The search reads the head's rows itself, and would miss what an adapter adds to them.
    changed = [
        f"it changes {name}, which must stay the base's"
        for name, module in base.named_modules()
        if (module in ends and key in getattr(module, "lora_A", {}))
        or (module in ends and key in getattr(module, "lora_embedding_A", {}))
    ]
    return [
        *changed,
        *(f"no layer for {name}" for name in sorted(found - wanted)),
        *(f"no weights for {name}" for name in sorted(wanted - found)),
    ]
