"""TF-IDF features of texts by scikit-learn, their vocabulary kept as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.data import Row, Task
from lateprompt.data.batches import Batches
from lateprompt.data.encoding import TEXTS
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, write_json

VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True, slots=True)
class TextExample:
    """A row for a model that reads texts.

    Args:
        texts: the text, and the second one in a task of pairs.
        label: class id, -1 if unknown.
    """

    texts: tuple[str, ...]
    label: int


class TextEncoder:
    """From rows to texts and class ids.

    Args:
        task: the task.
    """

    may_be_empty = False
    """A text without known words has features too: zeros."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.fields = TEXTS if task.is_pair else TEXTS[:1]

    def encode(self, rows: Sequence[Row]) -> list[TextExample]:
        """Texts and class ids of rows.

        Raises:
            LatePromptError: a row without the second text of a pair, or with a label that the task does not have.
        """
        return [TextExample(self._texts(row, number), self._label(row, number)) for number, row in enumerate(rows, 1)]

    def _texts(self, row: Row, number: int) -> tuple[str, ...]:
        texts = tuple(getattr(row, field) for field in self.fields)
        if None in texts:
            raise LatePromptError(
                f"row {number} has no {self.fields[texts.index(None)]}, which task {self.task.name} reads; give one"
            )
        return texts

    def _label(self, row: Row, number: int) -> int:
        if row.label is None:
            return -1
        if row.label not in self.task.labels:
            raise LatePromptError(
                f"row {number} has label {row.label!r}, which task {self.task.name} does not have; its labels are "
                f"{', '.join(self.task.labels)}"
            )
        return self.task.labels.index(row.label)


class TextBatches(Batches):
    """Rows as texts; there are no tokens to make a batch of.

    Args:
        examples: the rows.
    """

    def __init__(self, examples: Sequence[TextExample]) -> None:
        self.texts = [example.texts for example in examples]
        self.examples = ()
        self.weights = None
        self.lengths = np.array([sum(len(text.split()) for text in texts) for texts in self.texts], dtype=np.int64)
        self.labels = np.array([example.label for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.texts)


class Tfidf:
    """TF-IDF features of words and word n-grams, logarithmic in a term's count; each text of a pair has its own.

    Args:
        fields: the texts' names.
        ngrams: words of the longest n-gram.
        min_df: least number of training rows with a term.
    """

    def __init__(self, fields: Sequence[str], ngrams: int, min_df: int) -> None:
        self.fields, self.ngrams, self.min_df = tuple(fields), ngrams, min_df
        self.vectorizers: list[Any] = []

    def fit(self, texts: Sequence[Sequence[str]]) -> None:
        """Take the vocabulary from training texts.

        Raises:
            LatePromptError: texts without words.
        """
        made = []
        for field, column in zip(self.fields, zip(*texts, strict=True), strict=True):
            vectorizer = self._vectorizer()
            try:
                made.append(vectorizer.fit(column))
            except ValueError:
                raise LatePromptError(
                    f"the training rows' {field} has no words of two letters that are in {self.min_df} rows; "
                    "give texts of words, or another method"
                ) from None
        self.vectorizers = made

    def transform(self, texts: Sequence[Sequence[str]]) -> Any:
        """Features (rows, terms), a sparse matrix."""
        from scipy.sparse import hstack

        columns = list(zip(*texts, strict=True)) or [()] * len(self.fields)
        parts = zip(self.vectorizers, columns, strict=True)
        return hstack([vectorizer.transform(column) for vectorizer, column in parts], format="csr")

    @property
    def terms(self) -> int:
        """How many features there are."""
        return sum(len(vectorizer.vocabulary_) for vectorizer in self.vectorizers)

    def write(self, folder: Path) -> dict[str, np.ndarray]:
        """Write the vocabulary, and return the arrays that belong to it, by name."""
        words, arrays = {}, {}
        for field, vectorizer in zip(self.fields, self.vectorizers, strict=True):
            words[field] = vectorizer.get_feature_names_out().tolist()
            arrays[f"idf.{field}"] = vectorizer.idf_
        write_json(folder / VOCABULARY_FILE, words)
        return arrays

    def read(self, folder: Path, arrays: Mapping[str, np.ndarray], source: str) -> None:
        """Take vocabulary and arrays of a run folder.

        Raises:
            LatePromptError: a vocabulary that is broken, or does not fit the arrays.
        """
        path = folder / VOCABULARY_FILE
        words, made = read_json(path, "vocabulary"), []
        for field in self.fields:
            terms, idf = words.get(field), arrays.get(f"idf.{field}")
            if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
                raise LatePromptError(f"vocabulary {str(path)!r} is broken: it has no list of terms for {field!r}")
            if idf is None or idf.shape != (len(terms),) or len(set(terms)) < len(terms) or not terms:
                raise LatePromptError(
                    f"vocabulary {str(path)!r} does not fit {source!r} in {field!r}; take both from the same run"
                )
            vectorizer = self._vectorizer(vocabulary=terms)
            vectorizer.idf_ = idf.astype(np.float64)
            made.append(vectorizer)
        self.vectorizers = made

    def _vectorizer(self, **more: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        given = {"ngram_range": (1, self.ngrams), "sublinear_tf": True, "min_df": self.min_df}
        return TfidfVectorizer(**given, **more)
