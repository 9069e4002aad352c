//! Curriculum, batches, losses, schedule, optimiser state, checkpoints: single steps, and the engine that runs them.
