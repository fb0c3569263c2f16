"""The learner: task, attach, the training loop, checkpoints. Knows peers only by id; never opens a
network socket."""
