"""The paper's reasoning as measurements, for any model and task: what a late prompt does, by the layer it enters after.

- `prompts`: the prompts of a tuned model, the gradient that reaches them, and the scores with other prompts or none;
- `influence`: how far the output moves when prompts are removed, or permuted between instances;
- `information`: what hidden states say about the label, as a probe's accuracy and in usable bits;
- `instances`: how much the prompts of one task differ between instances and classes;
- `studies`: the analyses of `lateprompt analyze`, from settings to a folder with results, a page and figures.
"""
