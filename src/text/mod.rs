//! Text around the model: tokenizer, chat template, prompts, tasks, normalisation and word error rate.
