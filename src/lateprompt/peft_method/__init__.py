"""Late prompts as a method of PEFT, what can be tuned beneath them, and methods that PEFT lacks."""
