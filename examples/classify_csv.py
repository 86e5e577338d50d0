"""Train a text classifier on a CSV with the columns text and label, and label the texts of another CSV.

    python examples/classify_csv.py train.csv new.csv labelled.csv [MODEL]

MODEL is a hub id or a folder, such as roberta-base; without it, the small model that `make demo` installs.
"""

import csv
import sys
from collections import Counter

from lateprompt import LatePromptClassifier
from lateprompt.data import few_shot, read_rows
from lateprompt.demo import installed_encoder


def main(train_file: str, new_file: str, output: str, model: str | None = None) -> None:
    # A text that occurs twice is kept once: in both halves of the split it would make the score too good.
    rows = list({row.text: row for row in read_rows(train_file)}.values())
    # One row in five is held out, each label in proportion. It takes no part in training, so its score is honest.
    train, held_out = few_shot(rows, shots=len(rows) * 4 // 5, seed=42, dev_size=len(rows))

    classifier = LatePromptClassifier(model or installed_encoder(), method="npg", max_length=128, verbose=True)
    classifier.fit([row.text for row in train], [row.label for row in train])

    accuracy = classifier.score([row.text for row in held_out], [row.label for row in held_out])
    label, count = Counter(row.label for row in held_out).most_common(1)[0]
    print(f"trained on {len(train):,} rows, {classifier.metrics_['trainable_parameters']:,} parameters")
    print(
        f"accuracy on {len(held_out):,} held-out rows: {accuracy:.3f} (always {label!r}: {count / len(held_out):.3f})"
    )

    new = read_rows(new_file, labelled=False)  # a label column, if there is one, is not looked at
    probabilities = classifier.predict_proba([row.text for row in new])
    best = probabilities.argmax(1)
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*new[0].source, "prediction", "probability"])
        for row, chosen, scores in zip(new, best, probabilities, strict=True):
            writer.writerow([*row.source.values(), classifier.classes_[chosen], f"{scores[chosen]:.3f}"])
    print(f"{len(new):,} labelled rows are in {output}")


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
