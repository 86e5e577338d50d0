"""A tuned model with its task: predict, evaluate, save and load."""
