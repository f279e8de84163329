"""Which LoRAs and textual inversions the images of a request use, found and fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sdlora.adapters import Blend, LoraMatch
from sdlora.errors import LoraFileError
from sdlora.inference.plan import GenerationPlan, SelectedLora, also_named, listed
from sdlora.lora.format.file import LoraFile, read_lora
from sdlora.lora.format.hashes import read_hashes
from sdlora.lora.format.identify import unread_note
from sdlora.lora.format.textual_inversion import inversion_base, read_inversion
from sdlora.lora.library.library import Library, LoraEntry, stamp
from sdlora.messages import Message
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tags import LoraTag

Weighted = tuple[LoraFile, float, float]


class LoraSelector:
    """Finds what prompts name; files stay open from one request to the next that uses them."""

    def __init__(self, blend: Blend, library: Library, book: PromptResources) -> None:
        self.blend, self.library, self.book = blend, library, book
        self._files: dict[tuple[Path, tuple[int, int]], tuple[LoraFile, str]] = {}
        self._used: set[Path] = set()

    def stand(self, sheet: GenerationPlan, hires: bool) -> None:
        """Make the LoRAs and words of a sheet's wishes stand in the model, and note them on it.

        What cannot be used is a problem on the sheet, never an error: the rest is used.
        """
        self._used = set()
        chosen = self._choose(sheet)
        words = self._words(sheet)
        images = len(sheet.wishes)
        still = [one for one in chosen if one.is_still(images, hires)]
        moving = [one for one in chosen if not one.is_still(images, hires)]
        merged: list[Weighted] = [(one.file, *one.strongest(0, False)) for one in still]
        try:
            fits = self.blend.apply([*merged, *((word, 1.0, 1.0) for word in words)])[: len(still)]
            fits += self.blend.set_row_weights([(one.file, (0.0,), (0.0,)) for one in moving])
            sheet.still, sheet.moving, sheet.fits = still, moving, fits
            sheet.tell(self.blend.notes)
        except LoraFileError as error:
            self.blend.clear()
            sheet.embeddings = {}
            sheet.unused |= {tag.name: error.message for _, _, tag in _named(sheet)}
            sheet.tell([Message("no LoRA is used: {why}", why=error)])
        self._files = {key: value for key, value in self._files.items() if key[0] in self._used}

    def _choose(self, sheet: GenerationPlan) -> list[SelectedLora]:
        """The LoRAs that can be used, each once."""
        by_name: dict[str, SelectedLora | None] = {}
        chosen: dict[Path, SelectedLora] = {}
        for image, negative, tag in _named(sheet):
            if tag.name not in by_name:
                by_name[tag.name] = self._found(tag.name, sheet, chosen)
            if one := by_name[tag.name]:
                one.tags.setdefault((image, negative), []).append(tag)
            else:
                template, why = "{name!r} is not used: {why}", sheet.unused[tag.name]
                sheet.tell([Message(template, name=tag.name, why=why)], [image])
        for one in chosen.values():
            for (image, _), tags in one.tags.items():
                sheet.tell(_told(one, tags), [image])
        return list(chosen.values())

    def _found(
        self, name: str, sheet: GenerationPlan, chosen: dict[Path, SelectedLora]
    ) -> SelectedLora | None:
        try:
            entry = self.library.find(name)
            file, its_hash = self._opened(entry.path, read_lora, partial(self._autov3, entry))
            its: LoraMatch = self.blend.match(file)
        except LoraFileError as error:
            sheet.unused[name] = error.message
            return None
        if entry.note:
            sheet.tell([entry.note])
        if entry.path not in chosen:
            chosen[entry.path] = SelectedLora(entry, file, its_hash)
            sheet.tell(_partly_used(name, chosen[entry.path], its))
        return chosen[entry.path]

    def _autov3(self, entry: LoraEntry) -> str:
        return self.library.hashes(entry).autov3

    def _words(self, sheet: GenerationPlan) -> list[LoraFile]:
        """The textual inversions that the prompts name."""
        texts = [part.text for wish in sheet.wishes for part in (wish.positive, wish.negative)]
        words = []
        for name, path in self.book.embeddings_in("\n".join(dict.fromkeys(texts))).items():
            try:
                file, its_hash = self._opened(path, read_inversion, partial(_sha256, path))
                if self.blend.match(file).embeddings.keys() != file.embeddings.keys():
                    raise LoraFileError(
                        "it is for {base}; the open model is {model}",
                        base=inversion_base(file), model=self.blend.family.title,
                    )  # fmt: skip
            except (LoraFileError, OSError) as error:
                template = "the textual inversion {name!r} is not used: {why}"
                sheet.tell([Message(template, name=name, why=error)])
                continue
            words.append(file)
            sheet.embeddings[name] = its_hash
        return words

    def _opened(
        self, path: Path, read: Callable[[Path], LoraFile], hashed: Callable[[], str]
    ) -> tuple[LoraFile, str]:
        """A file and its hash; the same objects while the file is the same and in use."""
        key = path, stamp(path)
        self._used.add(path)
        if key not in self._files:
            self._files[key] = read(path), hashed()
        return self._files[key]


def _sha256(path: Path) -> str:
    """A textual inversion's hash in A1111's pictures."""
    return read_hashes(path).sha256[:12]


def _named(sheet: GenerationPlan) -> Iterator[tuple[int, bool, LoraTag]]:
    """(image, whether in the negative prompt, tag) of every tag there is."""
    for image, wish in enumerate(sheet.wishes):
        for negative, part in ((False, wish.positive), (True, wish.negative)):
            for tag in part.loras:
                yield image, negative, tag


def _partly_used(name: str, one: SelectedLora, its: LoraMatch) -> Iterator[Message]:
    """What of a file is not used, and which files of its name are not."""
    if one.file.unread:
        yield unread_note(name, one.file.unread)
    if its.unmatched:
        yield Message(
            "{count} layers of {name!r} are not in this model and are not used: {layers}",
            count=len(its.unmatched), name=name, layers=listed(its.unmatched),
        )  # fmt: skip
    if also := one.entry.also:
        template = "{name!r} is the name of other files too, not used: {files}"
        yield Message(template, name=name, files=also_named(also))


def _told(one: SelectedLora, tags: list[LoraTag]) -> Iterator[Message]:
    """What a user may not expect of the tags that one side of an image has for one LoRA."""
    if len(tags) > 1:
        yield _sum_told(one, tags)
    reads = any(not name.startswith("lora_unet_") for name in one.file.layers)
    for tag in tags if reads else ():
        if tag.text_encoder and _only_unet_changes(tag):
            yield Message(
                "the weight of {name!r} changes over the steps in the denoiser only; in the text "
                "encoder it is {weight:g} throughout",
                name=one.entry.name, weight=tag.text_encoder,
            )  # fmt: skip


def _only_unet_changes(tag: LoraTag) -> bool:
    """Whether points say so: a text is read anew for every step of [...], but not of a curve."""
    return bool(tag.points) and len({point.text_encoder for point in tag.points}) == 1


def _sum_told(one: SelectedLora, tags: list[LoraTag]) -> Message:
    """How the weights of several tags add up."""
    given = [f"{tag.unet:g}" for tag in tags]
    times = "twice" if len(given) == 2 else f"{len(given)} times"
    return Message(
        "{name!r} stands {times}, and its weights add up: {weights} = {sum:g}",
        name=one.entry.name, times=times, weights=" + ".join(given),
        sum=sum(tag.unet for tag in tags),
    )  # fmt: skip
