"""Built-in tasks. peer/learner/task.py says what a task is and loads one by name."""
