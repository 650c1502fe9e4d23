"""Where words stand in their sentence: found in the text given, or laid out where there is none."""

from collections.abc import Callable, Sequence

from neuronlake.store.errors import InputError

Span = tuple[int, int]

_SHOWN = 40  # characters of context in an error message


def lay_out(forms: Sequence[str], space_after: Sequence[bool]) -> tuple[str, list[Span]]:
    """Join surface tokens into a text and return it with each token's ``(start, end)`` in code points.

    A space after the last token is not kept.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    position = 0
    for index, (form, space) in enumerate(zip(forms, space_after, strict=True)):
        spans.append((position, position + len(form)))
        piece = form + " " if space and index < len(forms) - 1 else form
        pieces.append(piece)
        position += len(piece)
    return "".join(pieces), spans


def locate(text: str, forms: Sequence[str], *, where: Callable[[int], str]) -> list[Span]:
    """Walk the surface tokens through `text`, skipping white space between them, and return their spans.

    Parameters
    ----------
    text
        The sentence.
    forms
        The surface tokens, none of them empty.
    where
        Names the i-th token for error messages: file, line and sentence. The last also answers for what follows it.

    Raises
    ------
    InputError
        If a token does not stand where the one before it ended, or text is left over after the last one.
    """
    spans: list[Span] = []
    position = 0
    for index, form in enumerate(forms):
        # The match is tried before white space is skipped, as a form may begin with white space of its own (U+00A0).
        while not text.startswith(form, position):
            if position < len(text) and text[position].isspace():
                position += 1
                continue
            got = repr(text[position : position + max(_SHOWN, len(form))]) if position < len(text) else "the end"
            raise InputError(
                f"{where(index)}: the text does not agree with its words: expected {form!r} at character {position},"
                f" got {got}; correct the text or leave it out"
            )
        spans.append((position, position + len(form)))
        position += len(form)
    rest = text[position:].strip()
    if rest:
        raise InputError(
            f"{where(len(forms) - 1)}: the text does not agree with its words: expected the end"
            f" at character {position}, got {rest[:_SHOWN]!r}; correct the text or leave it out"
        )
    return spans
