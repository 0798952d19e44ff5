"""Train, measure and ship vision-language projectors that inherit the safety of their language model."""
