"""Selection of the LoRAs and textual inversions that the images of a request name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sdlora.adapters import Blend
from sdlora.errors import LoraFileError
from sdlora.inference.plan import (
    ImagePlan,
    ImageProblem,
    LoraSelection,
    SelectedLora,
    also_named,
    image_problem,
    listed,
)
from sdlora.lora.format.file import LoraFile, read_lora
from sdlora.lora.format.hashes import read_hashes
from sdlora.lora.format.identify import unread_note
from sdlora.lora.format.textual_inversion import inversion_base, read_inversion
from sdlora.lora.library.library import Library, LoraEntry, stamp
from sdlora.messages import Message
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tags import LoraTag

Tags = dict[tuple[int, bool], list[LoraTag]]  # by image, and whether in the negative prompt


class LoraSelector:
    """Finds what prompts name; files stay open from one request to the next that uses them."""

    def __init__(self, blend: Blend, library: Library, resources: PromptResources) -> None:
        self.blend, self.library, self.resources = blend, library, resources
        self._files: dict[tuple[Path, tuple[int, int]], tuple[LoraFile, str]] = {}
        self._used: set[Path] = set()

    def select(self, images: Sequence[ImagePlan], hires: bool) -> LoraSelection:
        """Find and match what the images' prompts name. What cannot be used is a problem of the
        selection, never an error: the rest is used."""
        self._used = set()
        everyone = range(len(images))
        loras, unused, problems = self._loras(images)
        inversions, hashes, messages = self._inversions(images)
        problems += [image_problem(message, everyone) for message in messages]
        self._files = {key: value for key, value in self._files.items() if key[0] in self._used}
        return LoraSelection(
            constant=tuple(lora for lora in loras if lora.is_constant(len(images), hires)),
            changing=tuple(lora for lora in loras if not lora.is_constant(len(images), hires)),
            inversions=tuple(inversions),
            inversion_hashes=hashes,
            unused=unused,
            problems=tuple(problems),
        )

    def apply(self, selection: LoraSelection, images: Sequence[ImagePlan]) -> LoraSelection:
        """Make exactly the selection act on the open model; return it with what the blend says of
        it, or empty where its sum overflows."""
        everyone = range(len(images))
        constant = [(lora.file, *lora.strongest(0, False)) for lora in selection.constant]
        try:
            self.blend.apply([*constant, *((file, 1.0, 1.0) for file in selection.inversions)])
            self.blend.set_row_weights([(lora.file, (0.0,), (0.0,)) for lora in selection.changing])
        except LoraFileError as error:
            self.blend.clear()
            reason = image_problem(Message("no LoRA is used: {why}", why=error), everyone)
            names = {tag.name for _, _, tag in _named(images)}
            return LoraSelection(
                unused={**selection.unused, **dict.fromkeys(names, error.message)},
                problems=(*selection.problems, reason),
            )
        notes = [image_problem(note, everyone) for note in self.blend.notes]
        return replace(selection, problems=(*selection.problems, *notes))

    def _loras(
        self, images: Sequence[ImagePlan]
    ) -> tuple[list[SelectedLora], dict[str, Message], list[ImageProblem]]:
        """Return the LoRAs that can be used, each once; names that cannot, with the reason; and
        what users may not expect."""
        everyone = range(len(images))
        by_name: dict[str, Path | None] = {}
        loras: dict[Path, SelectedLora] = {}
        tags: dict[Path, Tags] = {}
        unused: dict[str, Message] = {}
        problems: list[ImageProblem] = []
        for image, negative, tag in _named(images):
            if tag.name not in by_name:
                lora, reason = self._find(tag.name)
                by_name[tag.name] = lora.entry.path if lora else None
                if lora is None:
                    unused[tag.name] = reason
                elif lora.entry.path not in loras:
                    loras[lora.entry.path] = lora
                    messages = [
                        *([lora.entry.note] if lora.entry.note else []),
                        *_partly_used(lora),
                    ]
                    problems += [image_problem(message, everyone) for message in messages]
                elif lora.entry.note:
                    problems.append(image_problem(lora.entry.note, everyone))
            if path := by_name[tag.name]:
                tags.setdefault(path, {}).setdefault((image, negative), []).append(tag)
            else:
                template, reason = "{name!r} is not used: {why}", unused[tag.name]
                message = Message(template, name=tag.name, why=reason)
                problems.append(image_problem(message, [image]))
        selected = [replace(lora, tags=tags[path]) for path, lora in loras.items()]
        for lora in selected:
            for (image, _), of_side in lora.tags.items():
                problems += [
                    image_problem(message, [image]) for message in _tag_notes(lora, of_side)
                ]
        return selected, unused, problems

    def _find(self, name: str) -> tuple[SelectedLora | None, Message]:
        """Return the LoRA that a tag names, without its tags, or the reason why there is none."""
        try:
            entry = self.library.find(name)
            file, file_hash = self._open(entry.path, read_lora, partial(self._autov3, entry))
            return SelectedLora(entry, file, file_hash, self.blend.match(file), {}), Message("")
        except LoraFileError as error:
            return None, error.message

    def _autov3(self, entry: LoraEntry) -> str:
        return self.library.hashes(entry).autov3

    def _inversions(
        self, images: Sequence[ImagePlan]
    ) -> tuple[list[LoraFile], dict[str, str], list[Message]]:
        """Return the textual inversions that the prompts name, their hashes, and the reasons why
        others are not used."""
        texts = [part.text for image in images for part in (image.positive, image.negative)]
        files: list[LoraFile] = []
        hashes: dict[str, str] = {}
        reasons: list[Message] = []
        named = self.resources.embeddings_in("\n".join(dict.fromkeys(texts)))
        for name, path in named.items():
            try:
                file, file_hash = self._open(path, read_inversion, partial(_sha256, path))
                if self.blend.match(file).embeddings.keys() != file.embeddings.keys():
                    raise LoraFileError(
                        "it is for {base}; the open model is {model}",
                        base=inversion_base(file), model=self.blend.family.title,
                    )  # fmt: skip
            except (LoraFileError, OSError) as error:
                template = "the textual inversion {name!r} is not used: {why}"
                reasons.append(Message(template, name=name, why=error))
                continue
            files.append(file)
            hashes[name] = file_hash
        return files, hashes, reasons

    def _open(
        self, path: Path, read: Callable[[Path], LoraFile], hashed: Callable[[], str]
    ) -> tuple[LoraFile, str]:
        """Return a file and its hash; the same objects while the file is the same and in use."""
        key = path, stamp(path)
        self._used.add(path)
        if key not in self._files:
            self._files[key] = read(path), hashed()
        return self._files[key]


def _sha256(path: Path) -> str:
    """Return a textual inversion's hash in A1111's pictures."""
    return read_hashes(path).sha256[:12]


def _named(images: Sequence[ImagePlan]) -> Iterator[tuple[int, bool, LoraTag]]:
    """Yield (image, whether in the negative prompt, tag) of every tag there is."""
    for number, image in enumerate(images):
        for negative, part in ((False, image.positive), (True, image.negative)):
            for tag in part.loras:
                yield number, negative, tag


def _partly_used(lora: SelectedLora) -> Iterator[Message]:
    """Yield what of a file is not used, and which files of its name are not."""
    name = lora.entry.name
    if lora.file.unread:
        yield unread_note(name, lora.file.unread)
    if unmatched := lora.match.unmatched:
        yield Message(
            "{count} layers of {name!r} are not in this model and are not used: {layers}",
            count=len(unmatched), name=name, layers=listed(unmatched),
        )  # fmt: skip
    if also := lora.entry.also:
        template = "{name!r} is the name of other files too, not used: {files}"
        yield Message(template, name=name, files=also_named(also))


def _tag_notes(lora: SelectedLora, tags: Sequence[LoraTag]) -> Iterator[Message]:
    """Yield what a user may not expect of the tags that one side of an image has for one LoRA."""
    if len(tags) > 1:
        yield _sum_note(lora, tags)
    reads = any(not name.startswith("lora_unet_") for name in lora.file.layers)
    for tag in tags if reads else ():
        if tag.text_encoder and _only_unet_changes(tag):
            yield Message(
                "the weight of {name!r} changes over the steps in the denoiser only; in the text "
                "encoder it is {weight:g} throughout",
                name=lora.entry.name, weight=tag.text_encoder,
            )  # fmt: skip


def _only_unet_changes(tag: LoraTag) -> bool:
    """Return whether points say so: a text is read anew for every step of [...], but not of a
    curve."""
    return bool(tag.points) and len({point.text_encoder for point in tag.points}) == 1


def _sum_note(lora: SelectedLora, tags: Sequence[LoraTag]) -> Message:
    """Return how the weights of several tags add up."""
    given = [f"{tag.unet:g}" for tag in tags]
    times = "twice" if len(given) == 2 else f"{len(given)} times"
    return Message(
        "{name!r} stands {times}, and its weights add up: {weights} = {sum:g}",
        name=lora.entry.name, times=times, weights=" + ".join(given),
        sum=sum(tag.unet for tag in tags),
    )  # fmt: skip
