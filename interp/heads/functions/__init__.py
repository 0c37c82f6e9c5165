"""What heads do for a task: published kinds, one definition a file (`asked` holds what they measure on), and function
vectors, the mean outputs of heads that carry a task (`vectors`)."""
