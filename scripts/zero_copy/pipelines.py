"""Loading a trained pipeline by its folder or its package."""

from collections.abc import Iterable

import spacy
from spacy.language import Language

from zero_copy.errors import UserError


def load_pipeline(model: str, exclude: Iterable[str] = ()) -> Language:
    """Load a pipeline.

    model (str): Its folder, or the name of its package.
    exclude (Iterable[str]): Components to leave out.
    RETURNS (Language): The pipeline.
    RAISES (UserError): If there is none, or something that it needs is missing.
    """
    try:
        return spacy.load(model, exclude=exclude)
    except (OSError, ValueError) as error:  # spaCy's errors for a missing function are ValueErrors
        said = str(getattr(error, "title", None) or error).strip().split("\n")[0]
        raise UserError(
            f"Can't load a pipeline from {model}: {said}",
            "Give the folder of a trained one, training/r8/cnn/model-best say, or train one with "
            "`python -m spacy project run train`.",
        ) from error
