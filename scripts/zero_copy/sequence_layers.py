"""The lowerings of layers that read a document's tokens one after another, LSTMs say."""

from typing import Any, NamedTuple

import torch
from thinc.api import Model
from torch import Tensor

from zero_copy.lowering import Rows, Run, lowers


class Padded(NamedTuple):
    """Documents side by side, each beginning in the first row, rows of zeros after its end.

    thinc puts the longest document first; which stands where makes no difference to a layer. That
    the zeros are there does: an LSTM reads them before the document when it reads backwards.

    data (Tensor): `(longest, documents, width)`.
    """

    data: Tensor


@lowers("thinc.layers.with_padded.forward")
def with_padded(model: Model, X: Any, run: Run) -> Any:
    if isinstance(X, Padded):
        return run(model.layers[0], X)
    rows, batch = run.tokens(X), run.batch
    longest = int(batch.corpus.lengths[batch.docs].max(initial=0))
    token_of_doc = torch.arange(batch.words, device=rows.device) - batch.starts[batch.doc_of_token]
    places = token_of_doc * len(batch) + batch.doc_of_token
    padded = rows.new_zeros(longest * len(batch), rows.shape[1]).index_copy(0, places, rows)
    output = run(model.layers[0], Padded(padded.view(longest, len(batch), -1)))
    return Rows(output.data.flatten(0, 1).index_select(0, places), False)
