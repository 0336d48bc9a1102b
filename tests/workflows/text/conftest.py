"""A small language model of labelled sentences."""

import pytest

from matattn.workflows import run


@pytest.fixture(scope="session")
def labelled(on_sentences, tokenized, tmp_path_factory):
    """A finished run of ``model=text_encoder``: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("labelled")
    given = (f"task.tokenizer={tokenized[0] / 'model'}", "task.vocabulary=matter",
             "task.pretraining_epochs=2", "trainer.max_epochs=15")  # fmt: skip
    return folder, run.run(on_sentences("text_encoder", folder, *given))
