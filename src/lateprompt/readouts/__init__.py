"""How an answer is read from the tail's output: label words of a masked or causal LM, a text, or a trained head.

All look at read positions only. The LM head is the model's own code, run on the hidden states at those positions, and
over the label words' rows alone where the loss allows it.
"""

from __future__ import annotations

from lateprompt.data.batch import IGNORED as IGNORED
from lateprompt.data.batch import Batch as Batch
from lateprompt.readouts.base import Loss as Loss
from lateprompt.readouts.base import Readout as Readout
from lateprompt.readouts.base import mean_cross_entropy as mean_cross_entropy
from lateprompt.readouts.base import weighted_mean as weighted_mean
from lateprompt.readouts.generation import TextReadout as TextReadout
from lateprompt.readouts.head import HeadReadout as HeadReadout
from lateprompt.readouts.head import pool_states as pool_states
from lateprompt.readouts.label_words import MultiTokenReadout as MultiTokenReadout
from lateprompt.readouts.label_words import PhraseReadout as PhraseReadout
from lateprompt.readouts.label_words import WordReadout as WordReadout
from lateprompt.readouts.label_words import word_readout as word_readout
from lateprompt.readouts.lm_head import LMHead as LMHead
from lateprompt.readouts.multi_label import MultiLabelReadout as MultiLabelReadout
from lateprompt.utils.names import LOSSES as LOSSES
